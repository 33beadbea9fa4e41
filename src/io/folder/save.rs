//! Replacing a model folder as a whole, and finding out beforehand whether that will work.
//!
//! The order of steps is the whole point: every file, then every folder is synced before the swap, and the parent
//! after it; the old folder goes last. What cannot be done in one step (a file system without
//! `renameat2(RENAME_EXCHANGE)`) is done in two, with the old folder readable as `DIR.old` in between.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind as Io, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::checksums::{Manifest, Summed, check_name};
use super::{CHECKSUMS, Folder, MODEL, old_of, read_manifest};
use crate::io::atomic::{parent_of, place, sync_folder};
use crate::{Error, Result};

/// In a `DIR.old` of ours: this folder was moved aside by a save and may be removed by the next one. Without it a
/// `DIR.old` is someone's backup.
const MOVED_ASIDE: &str = ".warpsmith-moved-aside";

/// Called before each file operation with its name and path; an error is taken for the operation's own. For tests.
#[doc(hidden)]
pub type Hook<'a> = &'a dyn Fn(&str, &Path) -> io::Result<()>;

/// Saves a model folder: `fill` writes its files, which then take the place of `dir` in one step.
///
/// `fill` must write [`MODEL`]. Missing parents of `dir` are created. Files in the old folder that its list does not
/// name and `fill` did not write (a user's notes, a growing log) move to the new one, as hard links where possible;
/// listed ones are replaced or dropped.
///
/// Fails with kind `Argument` when `dir` is a folder with something in it that is no model of ours, with kind `Data`
/// when it cannot be written (read-only, full disk, a file in the way), and with whatever error `fill` gives. After an
/// error the old folder is as it was and nothing else is left; only if the very last step fails, making the swap
/// durable, the new folder is in place already and the old one is kept beside it until the next save. A kill at any moment leaves the old or the new model whole for [`Folder::open`].
pub fn save(dir: impl AsRef<Path>, fill: impl FnOnce(&mut Staging<'_>) -> Result<()>) -> Result<()> {
    save_with(dir, &|_, _| Ok(()), fill)
}

/// [`save`] with a hook before each operation.
#[doc(hidden)]
pub fn save_with(
    dir: impl AsRef<Path>,
    hook: Hook<'_>,
    fill: impl FnOnce(&mut Staging<'_>) -> Result<()>,
) -> Result<()> {
    let target = Target::of(dir.as_ref())?;
    let existing = target.inspect()?;
    create_parents(&target.parent, hook)?;
    remove_stale(&target);
    let mut staging = Staging::create(&target.parent, &target, hook)?;
    fill(&mut staging)?;
    if !staging.has(MODEL) {
        return Err(Error::internal(format!("a model folder was saved without {MODEL}")));
    }
    match existing {
        Existing::Model => staging.carry_over(&target.dir)?,
        // A save was cut off between its two renames: what was in the folder is in `DIR.old`.
        Existing::Missing if is_moved_aside(&target.old) => staging.carry_over(&target.old)?,
        Existing::Missing | Existing::Empty => {}
    }
    staging.seal()?;
    staging.swap(&target, existing)
}

/// Finds out whether [`save`] could write `dir`, by writing a little beside it; leaves nothing behind.
///
/// Fails as [`save`] would. Meant to be called before hours of training.
pub fn check_writable(dir: impl AsRef<Path>) -> Result<()> {
    let target = Target::of(dir.as_ref())?;
    let existing = target.inspect()?;
    let ancestor = target.parent.ancestors().find(|a| a.exists()).unwrap_or(&target.parent);
    refuse_read_only(ancestor, &target.dir)?;
    let hook: Hook<'_> = &|_, _| Ok(());
    let mut probe = Staging::create(ancestor, &target, hook)?;
    probe.bytes("probe", b"written before training to see that the model can be saved after it\n")?;
    if existing == Existing::Model {
        let other = Staging::create(ancestor, &target, hook)?;
        if let Err(e) = exchange(&probe.path, &other.path) {
            if !cannot_exchange(&e) {
                return Err(failed(&target.dir, "swap with a new folder", e));
            }
            target.refuse_foreign_old()?;
        }
    }
    Ok(())
}

/// Where to save, with links resolved: renaming must move the folder itself.
struct Target {
    dir: PathBuf,
    parent: PathBuf,
    name: OsString,
    old: PathBuf,
}

#[derive(Clone, Copy, PartialEq)]
enum Existing {
    Missing,
    Empty,
    Model,
}

impl Target {
    fn of(dir: &Path) -> Result<Target> {
        let absolute = match fs::canonicalize(dir) {
            Ok(path) => path,
            Err(e) if e.kind() == Io::NotFound => {
                let path = std::path::absolute(dir).map_err(|e| failed(dir, "find", e))?;
                match (fs::canonicalize(parent_of(&path)), path.file_name()) {
                    (Ok(parent), Some(name)) => parent.join(name),
                    _ => path.components().collect(),
                }
            }
            Err(e) => return Err(failed(dir, "find", e)),
        };
        let dots = absolute.components().any(|c| c == Component::ParentDir);
        match (absolute.parent(), absolute.file_name()) {
            (Some(parent), Some(name)) if !dots => Ok(Target {
                parent: parent.to_owned(),
                name: name.to_owned(),
                old: old_of(&absolute),
                dir: absolute,
            }),
            _ => Err(Error::argument(format!("{} cannot be a model folder", dir.display()))),
        }
    }

    /// What is there now. Refuses whatever must not or cannot be replaced.
    fn inspect(&self) -> Result<Existing> {
        let dir = &self.dir;
        match fs::metadata(dir) {
            Err(e) if e.kind() == Io::NotFound => return Ok(Existing::Missing),
            Err(e) => return Err(failed(dir, "look at", e)),
            Ok(meta) if !meta.is_dir() => {
                return Err(Error::data(dir, "expected a folder to save the model in, found a file"));
            }
            Ok(_) => {}
        }
        refuse_read_only(dir, dir)?;
        if is_mount_point(dir) {
            return Err(Error::data(dir, "the folder is a mount point and cannot be replaced in one step")
                .with_help(format!("save to a folder inside it, such as {}", dir.join("model").display())));
        }
        let mut entries = fs::read_dir(dir).map_err(|e| failed(dir, "list", e))?;
        if entries.next().is_none() {
            return Ok(Existing::Empty);
        }
        match [MODEL, CHECKSUMS].into_iter().find(|name| !dir.join(name).is_file()) {
            None => Ok(Existing::Model),
            Some(missing) => Err(Error::argument(format!(
                "the folder is not empty and no model of warpsmith's (it has no {missing}), so it is not replaced"
            ))
            .at(dir, None, None::<String>)
            .with_help("name another folder, or empty this one")),
        }
    }

    /// Refuses a `DIR.old` that no save of ours put there, where the old model would have to pass through it.
    fn refuse_foreign_old(&self) -> Result<()> {
        if !self.old.exists() || is_moved_aside(&self.old) {
            return Ok(());
        }
        Err(Error::data(&self.old, "in the way: this file system needs the name while a model is replaced")
            .with_help("move it elsewhere"))
    }

    /// Removes a `DIR.old` of ours. It takes a temporary name first: were it cut off in the middle of the removal, what
    /// is left might lack the mark, and would be in the way for ever.
    fn discard(&self, old: &Path) -> io::Result<()> {
        let temporary = self.temporary(&self.parent);
        fs::rename(old, &temporary)?;
        let _ = fs::remove_dir_all(&temporary);
        Ok(())
    }

    /// Serialises "make the folder and lock it" with "remove what is unlocked" among this process's threads.
    fn guard() -> MutexGuard<'static, ()> {
        static GUARD: Mutex<()> = Mutex::new(());
        GUARD.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary_prefix(&self) -> String {
        format!(".{}.tmp-", self.name.to_string_lossy())
    }

    /// A name beside the target that nothing has yet.
    fn temporary(&self, parent: &Path) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{}{}-{n}", self.temporary_prefix(), std::process::id()));
            if fs::symlink_metadata(&path).is_err() {
                return path;
            }
        }
    }
}

/// A new model folder being written, beside the one it will replace. Dropped before the swap, it is removed.
pub struct Staging<'h> {
    path: PathBuf,
    /// The final folder: what errors name.
    shown: PathBuf,
    hook: Hook<'h>,
    manifest: Manifest,
    /// Cleared when the folder has been renamed, or when it holds an old model that may still be needed.
    removable: bool,
    /// Held locked while this is being written: an unlocked temporary folder of a dead process may be removed.
    _lock: Option<File>,
}

impl<'h> Staging<'h> {
    fn create(parent: &Path, target: &Target, hook: Hook<'h>) -> Result<Staging<'h>> {
        let _guard = Target::guard();
        let path = target.temporary(parent);
        step(hook, "create a folder beside", &path, &target.dir, || fs::create_dir(&path))?;
        // Not every file system locks; then the process id alone guards the folder.
        let lock = File::open(&path).ok().filter(|folder| folder.try_lock().is_ok());
        let staging = Staging {
            path,
            shown: target.dir.clone(),
            hook,
            manifest: Manifest::default(),
            removable: true,
            _lock: lock,
        };
        if let Ok(meta) = fs::metadata(&target.dir) {
            step(hook, "set the permissions of", &staging.path, &target.dir, || {
                fs::set_permissions(&staging.path, meta.permissions())
            })?;
        }
        Ok(staging)
    }

    /// Writes one file through `write`, and syncs it. `name` is relative, with `/` before a file in a subfolder.
    ///
    /// Fails with kind `Argument` for a name that is unfit or was written before, with kind `Data` when the file
    /// cannot be written, and with whatever error `write` gives.
    pub fn file(&mut self, name: &str, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        if name == CHECKSUMS || name == MOVED_ASIDE || self.has(name) {
            return Err(Error::argument(format!("the file {name:?} of a model folder is written already")));
        }
        check_name(name).map_err(Error::argument)?;
        let line = self.write_file(name, write)?;
        let at = self.manifest.lines.partition_point(|l| l.name < line.name);
        self.manifest.lines.insert(at, line);
        Ok(())
    }

    /// Writes one file of these bytes; see [`Staging::file`].
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let shown = self.shown.join(name);
        self.file(name, |out| out.write_all(bytes).map_err(|e| failed(&shown, "write", e)))
    }

    fn has(&self, name: &str) -> bool {
        self.manifest.get(name).is_some()
    }

    fn write_file(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<super::checksums::Line> {
        let (path, shown, hook) = (self.path.join(name), self.shown.join(name), self.hook);
        let folder = parent_of(&path);
        if !folder.is_dir() {
            step(hook, "create", folder, &shown, || fs::create_dir_all(folder))?;
        }
        let file = step(hook, "create", &path, &shown, || {
            OpenOptions::new().write(true).create_new(true).open(&path)
        })?;
        let hooked = Hooked { file: &file, path: &path, hook };
        let mut out = BufWriter::with_capacity(1 << 18, Summed::new(hooked));
        write(&mut out).map_err(|e| place(e, &shown))?;
        let summed = out.into_inner().map_err(|e| failed(&shown, "write", e.into_error()))?;
        step(hook, "sync", &path, &shown, || file.sync_all())?;
        Ok(summed.line(name))
    }

    /// Takes over what the old folder holds beyond its listed files.
    fn carry_over(&self, old: &Path) -> Result<()> {
        // An unreadable list names nothing: then all is carried, since nothing may be lost.
        let listed = read_manifest(&old.join(CHECKSUMS)).unwrap_or_default();
        let mut pending = vec![PathBuf::new()];
        while let Some(inside) = pending.pop() {
            let folder = old.join(&inside);
            for entry in fs::read_dir(&folder).map_err(|e| failed(&folder, "list", e))? {
                let entry = entry.map_err(|e| failed(&folder, "list", e))?;
                let kind = entry.file_type().map_err(|e| failed(&entry.path(), "look at", e))?;
                let relative = inside.join(entry.file_name());
                let known = relative.to_str().is_some_and(|name| {
                    [CHECKSUMS, MOVED_ASIDE].contains(&name) || listed.get(name).is_some() || self.has(name)
                });
                if kind.is_dir() {
                    pending.push(relative);
                } else if !known && (kind.is_file() || kind.is_symlink()) {
                    let (from, to) = (entry.path(), self.path.join(&relative));
                    step(self.hook, "carry over", &to, &from, || {
                        fs::create_dir_all(parent_of(&to))?;
                        link_or_copy(&from, &to)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Writes the list and makes the whole folder durable.
    fn seal(&self) -> Result<()> {
        let text = self.manifest.text();
        let shown = self.shown.join(CHECKSUMS);
        self.write_file(CHECKSUMS, |out| {
            out.write_all(text.as_bytes()).map_err(|e| failed(&shown, "write", e))
        })?;
        let mut folders = BTreeSet::new();
        let mut pending = vec![self.path.clone()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(&folder).map_err(|e| failed(&folder, "list", e))? {
                let entry = entry.map_err(|e| failed(&folder, "list", e))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(entry.path());
                }
            }
            folders.insert(folder);
        }
        // Sorted, a folder stands before those inside it.
        folders
            .iter()
            .rev()
            .try_for_each(|folder| step(self.hook, "sync", folder, &self.shown, || sync_folder(folder)))
    }

    fn swap(mut self, target: &Target, existing: Existing) -> Result<()> {
        let (dir, hook) = (&target.dir, self.hook);
        match existing {
            Existing::Missing | Existing::Empty => {
                step(hook, "rename", &self.path, dir, || fs::rename(&self.path, dir))?;
                self.removable = false;
            }
            Existing::Model => match hook("exchange", dir).and_then(|()| exchange(&self.path, dir)) {
                Ok(()) => {}
                Err(e) if cannot_exchange(&e) => {
                    self.swap_in_two_steps(target)?;
                    self.removable = false;
                }
                Err(e) => return Err(failed(dir, "swap with the new folder", e)),
            },
        }
        let synced = step(hook, "sync", &target.parent, dir, || sync_folder(&target.parent));
        if synced.is_err() {
            // After a power cut `DIR` may be the old folder again: it must still have its files.
            self.removable = false;
            return synced;
        }
        // The new model is safe. What cannot be removed now is found by the next save.
        if hook("remove", &self.path).is_ok() && is_moved_aside(&target.old) {
            let _ = target.discard(&target.old);
        }
        Ok(())
    }

    /// `DIR` becomes `DIR.old`, then the new folder becomes `DIR`.
    fn swap_in_two_steps(&self, target: &Target) -> Result<()> {
        let (dir, hook) = (&target.dir, self.hook);
        // Two savers in the middle of this would trip over each other. Not every file system locks.
        let parent = File::open(&target.parent).ok();
        let _locked = parent.as_ref().map(File::lock);
        target.refuse_foreign_old()?;
        let mut aside = target.old.clone();
        if aside.exists() {
            if Folder::open_exactly(dir).is_ok() {
                step(hook, "remove", &aside, &aside, || target.discard(&aside))?;
            } else {
                // `DIR.old` may be the only whole model: it stays until the new one is in place.
                aside = target.temporary(&target.parent);
            }
        }
        let mark = dir.join(MOVED_ASIDE);
        step(hook, "mark", &mark, dir, || File::create(&mark)?.sync_all().and_then(|()| sync_folder(dir)))?;
        let moved = step(hook, "move aside", dir, dir, || fs::rename(dir, &aside)).and_then(|()| {
            let renamed = step(hook, "sync", &target.parent, dir, || sync_folder(&target.parent))
                .and_then(|()| step(hook, "rename", &self.path, dir, || fs::rename(&self.path, dir)));
            // Should this fail too, readers still find the whole `DIR.old`.
            renamed.inspect_err(|_| drop(fs::rename(&aside, dir)))
        });
        if moved.is_err() {
            let _ = fs::remove_file(&mark);
        } else if aside != target.old {
            let _ = fs::remove_dir_all(&aside);
        }
        moved
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // Before the swap: the unfinished folder. After an exchange: the old one. After a rename: nothing.
        if self.removable {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Calls the hook before each write.
struct Hooked<'a> {
    file: &'a File,
    path: &'a Path,
    hook: Hook<'a>,
}

impl Write for Hooked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.hook)("write", self.path)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn step<T>(
    hook: Hook<'_>,
    what: &str,
    path: &Path,
    shown: &Path,
    act: impl FnOnce() -> io::Result<T>,
) -> Result<T> {
    hook(what, path).and_then(|()| act()).map_err(|e| failed(shown, what, e))
}

fn failed(path: &Path, what: &str, cause: io::Error) -> Error {
    let help = match cause.kind() {
        Io::StorageFull | Io::QuotaExceeded => Some("free some space and try again; nothing was overwritten"),
        Io::ReadOnlyFilesystem | Io::PermissionDenied => {
            Some("choose a folder that you may write to; nothing was overwritten")
        }
        _ => None,
    };
    let error = Error::io(path, what, cause);
    if let Some(help) = help { error.with_help(help) } else { error }
}

/// Refuses a folder without any write permission: root could write it, but someone said not to.
fn refuse_read_only(folder: &Path, shown: &Path) -> Result<()> {
    let meta = fs::metadata(folder).map_err(|e| failed(shown, "look at", e))?;
    if !meta.is_dir() {
        return Err(Error::data(folder, "expected a folder, found a file"));
    }
    // Some systems ship `/` read-only for all but root.
    if meta.permissions().readonly() && folder.parent().is_some() {
        return Err(
            Error::data(folder, "the folder is read-only").with_help("choose a folder that you may write to")
        );
    }
    Ok(())
}

fn create_parents(parent: &Path, hook: Hook<'_>) -> Result<()> {
    let missing: Vec<&Path> = parent.ancestors().take_while(|a| !a.exists()).collect();
    for folder in missing.into_iter().rev() {
        step(hook, "create", folder, folder, || match fs::create_dir(folder) {
            Err(e) if e.kind() == Io::AlreadyExists && folder.is_dir() => Ok(()),
            other => other,
        })?;
        step(hook, "sync", parent_of(folder), folder, || sync_folder(parent_of(folder)))?;
    }
    refuse_read_only(parent, parent)
}

fn is_moved_aside(old: &Path) -> bool {
    old.join(MOVED_ASIDE).is_file()
}

/// Removes temporary folders of this target whose process is gone. Failures do not matter.
fn remove_stale(target: &Target) {
    let _guard = Target::guard();
    let prefix = target.temporary_prefix();
    for entry in fs::read_dir(&target.parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((pid, n)) =
            name.to_str().and_then(|n| n.strip_prefix(&prefix)).and_then(|n| n.split_once('-'))
        else {
            continue;
        };
        let (Ok(pid), Ok(_)) = (pid.parse::<u32>(), n.parse::<u64>()) else {
            continue;
        };
        // In containers a new process often has the number of the dead one, even our own: the lock tells.
        let alive = pid != std::process::id() && Path::new("/proc").join(pid.to_string()).exists();
        let locked = File::open(entry.path())
            .is_ok_and(|folder| matches!(folder.try_lock(), Err(fs::TryLockError::WouldBlock)));
        if !alive && !locked {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(target_os = "linux")]
fn exchange(new: &Path, dir: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, new, CWD, dir, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_new: &Path, _dir: &Path) -> io::Result<()> {
    Err(Io::Unsupported.into())
}

/// Whether the system or file system lacks the exchange, as against refusing this one. Filters of system calls answer
/// with "not permitted"; where that was meant for the folder, the plain rename will say so again.
fn cannot_exchange(e: &io::Error) -> bool {
    matches!(e.kind(), Io::Unsupported | Io::InvalidInput | Io::CrossesDevices | Io::PermissionDenied)
}

fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if fs::symlink_metadata(from)?.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    fs::hard_link(from, to).or_else(|_| {
        fs::copy(from, to)?;
        File::open(to)?.sync_all()
    })
}

/// Whether something is mounted on this folder: such a folder cannot be renamed.
fn is_mount_point(dir: &Path) -> bool {
    let Some(dir) = dir.to_str() else { return false };
    // The fifth field, with white space and backslashes as octal escapes.
    let mut escaped = String::new();
    for c in dir.chars() {
        match c {
            ' ' | '\t' | '\n' | '\\' => escaped.push_str(&format!("\\{:03o}", c as u32)),
            c => escaped.push(c),
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(&escaped))
}
