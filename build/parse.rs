//! Reads a `.cu` file's declarations; the grammar stands in `decl`. No preprocessor and no C++ parser: comments and strings
//! are blanked, declarations stand at column 1, and what would make a kernel or shared memory behind our back is refused.

use crate::decl::{Allowance, Arch, Axis, Dir, Error, Expr, Kernel, Param, Scalar, Ty, Unit, Val, Values};

type Result<T> = std::result::Result<T, Error>;

/// Words that may not appear in a `.cu` file, and what to write instead.
const REFUSED: [(&str, &str); 5] = [
    ("__global__", "declare the kernel with KERNEL(...)"),
    ("__shared__", "write SHARED(Type, name) or DYN_SHARED(Type, name)"),
    ("__launch_bounds__", "the block of launch(...) sets it"),
    ("asm", "a primitive belongs into core/ptx.cuh, with its body for the host"),
    ("__asm__", "a primitive belongs into core/ptx.cuh, with its body for the host"),
];

/// Words that are keywords in Rust or fields and locals of the generated launch.
const RESERVED: [&str; 44] = [
    "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "final", "fn", "for", "gen", "grid", "if", "impl", "in", "let", "loop", "macro",
    "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "shared", "static",
    "struct", "super", "trait", "try", "type", "use", "where",
];

/// The most bytes of arguments that a launch takes.
const ARGUMENTS: usize = 32_764;

/// All declarations of one file.
pub fn unit(stem: &str, text: &str) -> Result<Unit> {
    let archs = archs(text.lines().next().unwrap_or_default())?;
    let code = blank(text);
    let mut kernels = Vec::<Kernel>::new();
    let mut allowances = Vec::new();
    let mut doc = Vec::new();
    let (mut depth, mut offset) = (0_i32, 0);
    for (number, (line, original)) in code.split_inclusive('\n').zip(text.split_inclusive('\n')).enumerate() {
        let fail = |column: usize, what: String| Err(Error { line: number + 1, column, what });
        let trimmed = line.trim();
        let indent = line.len() - line.trim_start().len();
        if let Some(comment) = original.trim().strip_prefix("//") {
            let comment = comment.strip_prefix(' ').unwrap_or(comment).trim_end();
            if let Some(allowance) = comment.strip_prefix("spills: ") {
                let Some((kernel, reason)) = allowance.split_once(", because ") else {
                    return fail(1, "expected `// spills: KERNEL, because REASON`".into());
                };
                allowances.push(Allowance { kernel: kernel.trim().into(), reason: reason.trim().into() });
            } else if number > 0 {
                doc.push(comment.to_owned());
            }
            offset += line.len();
            continue;
        }
        if let Some(directive) = trimmed.strip_prefix('#').map(str::trim_start) {
            if directive.starts_with("if") {
                depth += 1;
            } else if directive.starts_with("endif") {
                depth -= 1;
            } else if directive.starts_with("include") && directive.contains('<') {
                return fail(indent + 1, "a kernel file includes headers of core/ only".into());
            }
        }
        for (column, word) in words(line) {
            if let Some((_, instead)) = REFUSED.iter().find(|(refused, _)| *refused == word) {
                return fail(column, format!("no {word} here: {instead}"));
            }
            if word == "KERNEL" && !trimmed.starts_with('#') && column != 1 {
                return fail(column, "KERNEL must stand at the start of its line".into());
            }
        }
        if let Some(at) = line.find("<<<") {
            return fail(at + 1, "no <<<>>> here: launches are generated".into());
        }
        if words(line).next().is_some_and(|first| first == (1, "KERNEL")) {
            if depth != 0 {
                return fail(1, "a KERNEL may not stand inside #if: build.rs runs no preprocessor".into());
            }
            let mut parser = Parser { text: &code, at: offset };
            let mut kernel = parser.kernel()?;
            if let Some(arch) =
                kernel.arch.as_ref().filter(|a| !archs.iter().any(|b| !b.ptx && b.name == **a))
            {
                return fail(1, format!("arch(sm_{arch}), but line 1 does not name {arch}"));
            }
            kernel.line = number + 1;
            kernel.doc = std::mem::take(&mut doc);
            if kernels.iter().any(|k| k.name == kernel.name) {
                return fail(1, format!("kernel {} is declared twice", kernel.name));
            }
            kernels.push(kernel);
        }
        doc.clear();
        offset += line.len();
    }
    for allowance in &allowances {
        if !kernels.iter().any(|k| k.name == allowance.kernel) {
            let what = format!("`// spills: {}`: there is no such kernel", allowance.kernel);
            return Err(Error { line: 1, column: 1, what });
        }
    }
    Ok(Unit { stem: stem.to_owned(), archs, kernels, allowances })
}

/// Reads line 1.
fn archs(line: &str) -> Result<Vec<Arch>> {
    let fail = |column, what: String| Err(Error { line: 1, column, what });
    let example = "as in `// archs: 80 86 89 90 100 120 ptx80`";
    let Some(list) = line.strip_prefix("// archs:") else {
        return fail(1, format!("line 1 must name the architectures, {example}"));
    };
    let mut archs = Vec::<Arch>::new();
    for word in list.split_whitespace() {
        let column = word.as_ptr() as usize - line.as_ptr() as usize + 1;
        match Arch::parse(word) {
            Some(arch) if !archs.contains(&arch) => archs.push(arch),
            Some(_) => return fail(column, format!("architecture {word} is named twice")),
            None => return fail(column, format!("no architecture `{word}`; write numbers, {example}")),
        }
    }
    if archs.iter().all(|a| a.ptx) {
        return fail(1, format!("line 1 must name an architecture for machine code, {example}"));
    }
    Ok(archs)
}

/// The text with comments and the contents of literals replaced by spaces, byte for byte, so that places stay the same.
fn blank(text: &str) -> String {
    #[derive(PartialEq)]
    enum In {
        Code,
        Line,
        Block,
        Literal(u8),
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut state = In::Code;
    let mut i = 0;
    while i < bytes.len() {
        let (b, next) = (bytes[i], bytes.get(i + 1).copied().unwrap_or(0));
        // A quote within a number separates digits, as in 65'536.
        let separator = b == b'\'' && i > 0 && bytes[i - 1].is_ascii_alphanumeric();
        let keep = match state {
            In::Code => {
                match (b, next) {
                    (b'/', b'/') => state = In::Line,
                    (b'/', b'*') => state = In::Block,
                    (b'"' | b'\'', _) if !separator => state = In::Literal(b),
                    _ => {}
                }
                !matches!(state, In::Line | In::Block)
            }
            In::Line => false,
            In::Block => {
                if b == b'*' && next == b'/' {
                    out.extend_from_slice(b"  ");
                    i += 2;
                    state = In::Code;
                    continue;
                }
                false
            }
            In::Literal(quote) => {
                if b == b'\\' && next != b'\n' {
                    out.extend_from_slice(b"  ");
                    i += 2;
                    continue;
                }
                if b == quote {
                    state = In::Code;
                }
                b == quote
            }
        };
        if b == b'\n' {
            if state != In::Block {
                state = In::Code;
            }
            out.push(b);
        } else {
            out.push(if keep { b } else { b' ' });
        }
        i += 1;
    }
    out.truncate(bytes.len());
    // Only whole characters outside of comments and literals are left; any other byte is a space.
    String::from_utf8_lossy(&out).into_owned()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The words of a line with their columns.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    line.split(|c| !is_word(c))
        .filter(|w| !w.is_empty())
        .map(|w| (w.as_ptr() as usize - line.as_ptr() as usize + 1, w))
}

/// Reads one declaration.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn fail<T>(&self, at: usize, what: impl Into<String>) -> Result<T> {
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |i| i + 1) + 1;
        Err(Error { line, column, what: what.into() })
    }

    fn peek(&mut self) -> char {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next().unwrap_or('\0')
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == c;
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn want(&mut self, c: char) -> Result<()> {
        if self.eat(c) {
            return Ok(());
        }
        let found = self.peek();
        self.fail(self.at, format!("expected `{c}`, found `{found}`"))
    }

    /// A name and its place.
    fn word(&mut self, what: &str) -> Result<(usize, String)> {
        self.peek();
        let at = self.at;
        let word: String = self.text[at..].chars().take_while(|c| is_word(*c)).collect();
        if word.is_empty() || word.starts_with(|c: char| c.is_ascii_digit()) {
            return self.fail(at, format!("expected {what}"));
        }
        self.at += word.len();
        Ok((at, word))
    }

    fn integer(&mut self) -> Result<u64> {
        self.peek();
        let at = self.at;
        let digits: String = self.text[at..].chars().take_while(char::is_ascii_digit).collect();
        self.at += digits.len();
        match digits.parse() {
            Ok(n) => Ok(n),
            Err(_) => self.fail(at, "expected an integer of 64 bits"),
        }
    }

    fn scalar(&mut self) -> Result<Scalar> {
        let (at, word) = self.word("a type")?;
        match Scalar::ALL.iter().find(|(name, _)| *name == word) {
            Some((_, scalar)) => Ok(*scalar),
            None => {
                let all = Scalar::ALL.map(|(name, _)| name).join(" ");
                self.fail(at, format!("no type `{word}`; there are {all}"))
            }
        }
    }

    fn kernel(&mut self) -> Result<Kernel> {
        self.word("KERNEL")?;
        self.want('(')?;
        let (at, name) = self.word("the kernel's name")?;
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.contains("__") || name.ends_with('_') {
            return self.fail(at, "a kernel's name is in lower case, with single underscores");
        }
        let mut kernel = Kernel {
            name,
            doc: Vec::new(),
            line: 0,
            axes: Vec::new(),
            params: Vec::new(),
            arch: None,
            grid: None,
            block: [0; 3],
            shared: None,
            blocks: None,
        };
        // Expressions may name vals that are declared later; checked at the end.
        let mut exprs = Vec::new();
        while self.eat(',') {
            self.item(&mut kernel, &mut exprs)?;
        }
        self.want(')')?;
        if self.peek() != '{' {
            return self.fail(self.at, "the body `{` must follow: KERNEL(...) is the head of the definition");
        }
        self.complete(&kernel, at, &exprs)?;
        Ok(kernel)
    }

    /// One item of a declaration.
    fn item(&mut self, kernel: &mut Kernel, exprs: &mut Vec<(usize, Expr)>) -> Result<()> {
        const ITEMS: &str = "types functors ints in out inout opt_in opt_out opt_inout map val arch launch";
        let (at, item) = self.word(&format!("one of {ITEMS}"))?;
        self.want('(')?;
        let mut param = None;
        match item.as_str() {
            "types" | "functors" | "ints" => {
                let (at, axis) = self.axis(&item)?;
                self.fresh(kernel, at, &axis.name)?;
                kernel.axes.push(axis);
            }
            "in" | "out" | "inout" | "opt_in" | "opt_out" | "opt_inout" => {
                let (dir, optional) = match item.strip_prefix("opt_").unwrap_or(&item) {
                    "in" => (Dir::In, item != "in"),
                    "out" => (Dir::Out, item != "out"),
                    _ => (Dir::InOut, item != "inout"),
                };
                let ty = self.ty(kernel)?;
                self.want(',')?;
                let (at, name) = self.word("a name")?;
                self.want(',')?;
                self.peek();
                let from = self.at;
                let len = Some(self.expr(0)?).filter(|e| *e != Expr::Name("any".into()));
                exprs.extend(len.iter().map(|e| (from, e.clone())));
                param = Some((at, Param::Buffer { dir, optional, ty, name, len }));
            }
            "map" => {
                let (at, name) = self.word("a name")?;
                param = Some((at, Param::Map { name }));
            }
            "val" => {
                let (at, word) = self.word("a type")?;
                let ty = match word.as_str() {
                    "Dims" => Val::Dims,
                    "Strides" => Val::Strides,
                    _ => {
                        self.at = at;
                        Val::Scalar(self.scalar()?)
                    }
                };
                if matches!(ty, Val::Scalar(Scalar::F16 | Scalar::Bf16)) {
                    return self.fail(at, format!("pass a {word} by value as f32"));
                }
                self.want(',')?;
                let (at, name) = self.word("a name")?;
                param = Some((at, Param::Val { ty, name }));
            }
            "arch" => {
                let (at, word) = self.word("an architecture, as sm_90a")?;
                let Some(arch) = word.strip_prefix("sm_").and_then(Arch::parse).filter(|a| !a.ptx) else {
                    return self.fail(at, format!("no architecture `{word}`; write it as sm_90a"));
                };
                kernel.arch = Some(arch.name);
            }
            "launch" => self.launch(kernel, exprs)?,
            _ => return self.fail(at, format!("no item `{item}`; there are {ITEMS}")),
        }
        self.want(')')?;
        if let Some((at, param)) = param {
            self.fresh(kernel, at, param.name())?;
            if param.name().starts_with(|c: char| c.is_ascii_uppercase()) {
                return self.fail(at, format!("`{}`: an argument's name is in lower case", param.name()));
            }
            kernel.params.push(param);
        }
        Ok(())
    }

    /// Refuses a name that is taken, in C++ or as a field of the generated struct, where template parameters are in lower case.
    fn fresh(&self, kernel: &Kernel, at: usize, name: &str) -> Result<()> {
        let field = name.to_lowercase();
        let axes = kernel.axes.iter().map(|a| a.name.to_lowercase());
        let mut taken = axes.chain(kernel.params.iter().map(|p| p.name().to_owned()));
        if taken.any(|t| t == field) {
            return self.fail(at, format!("`{name}` is declared twice"));
        }
        if RESERVED.contains(&field.as_str()) || name.starts_with("ws_") || name == "any" || name == "plan" {
            return self.fail(at, format!("`{name}` cannot be a name: Rust or the generated code uses it"));
        }
        Ok(())
    }

    /// `T: f32, bf16` and the like.
    fn axis(&mut self, item: &str) -> Result<(usize, Axis)> {
        let (at, name) = self.word("a name")?;
        if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
            return self.fail(at, format!("`{name}`: a template parameter's name is in upper case"));
        }
        self.want(':')?;
        self.peek();
        let list = self.at;
        let mut values = match item {
            "types" => Values::Types(Vec::new()),
            "functors" => Values::Functors(Vec::new()),
            _ => Values::Ints(Vec::new()),
        };
        loop {
            match &mut values {
                Values::Types(types) => types.push(self.scalar()?),
                Values::Functors(functors) => {
                    let (_, word) = self.word("the name of a functor or of a macro that defines functors")?;
                    let defined = self.defined_by(&word);
                    if defined.is_empty() {
                        functors.push(word);
                    } else {
                        functors.extend(defined);
                    }
                }
                Values::Ints(ints) => {
                    let n = self.integer()?;
                    let Ok(n) = u32::try_from(n).and_then(|n| i32::try_from(n).map(|_| n)) else {
                        return self.fail(list, "an ints value must fit in an int");
                    };
                    ints.push(n);
                }
            }
            if !self.eat(',') {
                break;
            }
        }
        let names = match &values {
            // u32 and i32 are one DType: the buffer could not tell them apart.
            Values::Types(types) => types.iter().map(|t| t.dtype().to_owned()).collect(),
            other => other.names(),
        };
        if let Some((_, again)) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            return self.fail(list, format!("`{name}` lists {again} twice"));
        }
        Ok((at, Axis { name, values }))
    }

    /// Every `X` of the lines `MACRO(X, ...` at column 1.
    fn defined_by(&self, macro_name: &str) -> Vec<String> {
        let argument = |line: &str| -> Option<String> {
            let rest = line.strip_prefix(macro_name)?.trim_start().strip_prefix('(')?.trim_start();
            let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
            (!name.is_empty()).then_some(name)
        };
        self.text.lines().filter_map(argument).collect()
    }

    fn ty(&mut self, kernel: &Kernel) -> Result<Ty> {
        let (at, word) = self.word("a type")?;
        for axis in &kernel.axes {
            if axis.name == word {
                return match axis.values {
                    Values::Types(_) => Ok(Ty::Param(word)),
                    _ => self.fail(at, format!("`{word}` is no element type")),
                };
            }
        }
        if word.chars().all(|c| !c.is_ascii_lowercase()) {
            return self.fail(at, format!("`{word}` needs types({word}: ...) before it"));
        }
        self.at = at;
        self.scalar().map(Ty::Is)
    }

    fn launch(&mut self, kernel: &mut Kernel, exprs: &mut Vec<(usize, Expr)>) -> Result<()> {
        if kernel.block != [0; 3] {
            return self.fail(self.at, "launch is given twice");
        }
        let plan = Expr::Name("plan".into());
        for key in ["grid", "block", "shared"] {
            if key != "grid" {
                self.want(',')?;
            }
            let (at, word) = self.word(&format!("`{key} = ...`"))?;
            if word != key {
                return self.fail(at, format!("expected `{key} = ...`"));
            }
            self.want('=')?;
            self.peek();
            let from = self.at;
            match key {
                "grid" => kernel.grid = Some(self.dims()?).filter(|dims| *dims != [plan.clone()]),
                "block" => {
                    let mut block = [1; 3];
                    for (to, expr) in block.iter_mut().zip(self.dims()?) {
                        match expr.constant() {
                            Some(n @ 1..=1024) => *to = n as u32,
                            _ => return self.fail(from, "a block's sides are integers from 1 to 1024"),
                        }
                    }
                    if block.iter().product::<u32>() > 1024 {
                        return self.fail(from, "a block has at most 1024 threads");
                    }
                    kernel.block = block;
                }
                _ => kernel.shared = Some(self.expr(0)?).filter(|e| *e != plan),
            }
            let new = kernel.grid.iter().flatten().chain(&kernel.shared);
            exprs.extend(new.map(|e| (from, e.clone())));
        }
        if self.eat(',') {
            let (at, word) = self.word("`blocks = ...`")?;
            if word != "blocks" {
                return self.fail(at, "expected `blocks = ...` or `)`");
            }
            self.want('=')?;
            self.peek();
            let from = self.at;
            kernel.blocks = match self.expr(0)?.constant() {
                Some(n @ 1..=32) => Some(n as u32),
                _ => return self.fail(from, "blocks is an integer from 1 to 32"),
            };
        }
        Ok(())
    }

    /// What can be said of a declaration only as a whole.
    fn complete(&self, kernel: &Kernel, at: usize, exprs: &[(usize, Expr)]) -> Result<()> {
        let name = &kernel.name;
        if kernel.block == [0; 3] {
            return self
                .fail(at, format!("kernel {name} has no launch(grid = ..., block = ..., shared = ...)"));
        }
        for (from, expr) in exprs {
            let mut unknown = None;
            expr.names(&mut |n| {
                let integer = |p: &Param| {
                    matches!(p, Param::Val { ty: Val::Scalar(s), name } if name == n && s.is_integer())
                };
                let axis = |a: &Axis| a.name == n && matches!(a.values, Values::Ints(_));
                if !kernel.params.iter().any(integer) && !kernel.axes.iter().any(axis) {
                    unknown = Some(n.to_owned());
                }
            });
            if let Some(unknown) = unknown {
                return self.fail(*from, format!("`{unknown}` is no integer val of kernel {name}"));
            }
        }
        for axis in kernel.axes.iter().filter(|a| matches!(a.values, Values::Types(_))) {
            let decides = |p: &Param| matches!(p, Param::Buffer { optional: false, ty: Ty::Param(t), .. } if *t == axis.name);
            if !kernel.params.iter().any(decides) {
                let what =
                    format!("no buffer of kernel {name} that is always present has type {}", axis.name);
                return self.fail(at, what);
            }
        }
        let (_, size, _) = kernel.layout();
        if size > ARGUMENTS {
            return self.fail(at, format!("{size} bytes of arguments; a launch takes {ARGUMENTS}"));
        }
        Ok(())
    }

    fn dims(&mut self) -> Result<Vec<Expr>> {
        self.peek();
        let from = self.at;
        if self.eat('(') {
            let mut dims = vec![self.expr(0)?];
            while self.eat(',') {
                dims.push(self.expr(0)?);
            }
            if dims.len() > 3 {
                return self.fail(from, "there are at most three dimensions");
            }
            if dims.len() > 1 {
                self.want(')')?;
                return Ok(dims);
            }
            // One expression that starts with a parenthesis.
            self.at = from;
        }
        Ok(vec![self.expr(0)?])
    }

    /// An expression of operators that bind tighter than `min`.
    fn expr(&mut self, min: u8) -> Result<Expr> {
        let c = self.peek();
        let mut left = if self.eat('(') {
            let inner = self.expr(0)?;
            self.want(')')?;
            inner
        } else if c.is_ascii_digit() {
            Expr::Int(self.integer()?)
        } else {
            let (at, word) = self.word("a number or a name")?;
            if word == "ceil_div" {
                self.want('(')?;
                let a = self.expr(0)?;
                self.want(',')?;
                let b = self.expr(0)?;
                self.want(')')?;
                Expr::CeilDiv(a.into(), b.into())
            } else if self.peek() == '(' {
                return self.fail(at, format!("no function `{word}` here; there is ceil_div"));
            } else {
                Expr::Name(word)
            }
        };
        loop {
            let op = self.peek();
            let power = match op {
                '+' | '-' => 1,
                '*' | '/' => 2,
                _ => 0,
            };
            if power <= min {
                return Ok(left);
            }
            self.eat(op);
            left = Expr::Op(op, left.into(), self.expr(power)?.into());
        }
    }
}
