//! Which kernel multiplies, in tiles of what size, and into how many slices k is cut: a pure function of the shapes, types,
//! strides and architecture, and of nothing that is measured at run time, since the answer decides the bits of a result.
//!
//! The rates in [`Tile::ALL`] are figures on paper (see `kernels/README.md`), not yet measured on a GPU.

#![forbid(unsafe_code)]

use crate::DType;

/// How one factor lies in memory, as rows of A (columns of B) by k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Rows of A, or columns of B.
    pub rows: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Elements from one k to the next.
    pub k_stride: usize,
    /// The largest power of two of elements, at most 8, that the first address and the steps from one matrix of the batch
    /// to the next are multiples of.
    pub aligned: usize,
}

impl Access {
    /// The same for `k` steps, with a stride that nothing walks along set to what suits best.
    fn of_depth(mut self, k: usize) -> Access {
        if k <= 1 && self.stride != 1 {
            self.k_stride = 1;
        }
        if self.rows <= 1 && self.k_stride != 1 {
            self.stride = 1;
        }
        self
    }

    /// Whether neighbours along k are the nearer ones.
    pub fn along_k(&self, k: usize) -> bool {
        let own = self.of_depth(k);
        own.k_stride == 1 || (own.stride != 1 && own.k_stride <= own.stride)
    }

    /// Elements from one contiguous line to the next (lines of k where [`Access::along_k`], else lines of rows); `None` if
    /// neighbours are apart.
    pub fn pitch(&self, k: usize) -> Option<usize> {
        let own = self.of_depth(k);
        let (near, far, lines) = if self.along_k(k) {
            (own.k_stride, own.stride, own.rows)
        } else {
            (own.stride, own.k_stride, k)
        };
        // A single line has no pitch: 0 is a multiple of everything.
        (near == 1).then_some(if lines <= 1 { 0 } else { far })
    }

    /// The strides for the kernels that take any.
    pub fn strides(&self, k: usize) -> (u64, u64) {
        let own = self.of_depth(k);
        (own.stride as u64, own.k_stride as u64)
    }

    /// Whether `width` neighbours from a multiple of `width` on are always one aligned access.
    pub fn vectors(&self, k: usize, width: usize) -> bool {
        self.aligned >= width && self.pitch(k).is_some_and(|pitch| pitch.is_multiple_of(width))
    }

    /// `a_mode` or `b_mode` of the kernels in `matmul.cu`.
    pub fn mode(&self, k: usize) -> u32 {
        u32::from(self.along_k(k)) | u32::from(self.vectors(k, 4)) << 1
    }
}

/// A product to plan: `batches` times [m, k] · [k, n].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    /// Type of the factors.
    pub dtype: DType,
    /// How A lies; its rows are m.
    pub a: Access,
    /// How B lies; its rows are n.
    pub b: Access,
    /// The dimension that is summed over.
    pub k: usize,
    /// Matrices.
    pub batches: usize,
    /// Whether f32 factors may be rounded to the 10 fraction bits of tf32.
    pub tf32: bool,
}

/// An architecture, as far as plans depend on it: two cards of one compute capability get the same plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Compute capability.
    pub capability: (u32, u32),
}

impl Arch {
    /// Multiprocessors of the largest common card.
    pub fn multiprocessors(self) -> usize {
        match self.capability {
            (8, 0) => 108,
            (8, 6) => 84,
            (8, _) => 128,
            (9, _) => 132,
            (10, _) => 148,
            _ => 170,
        }
    }

    /// Multiply-adds a clock and multiprocessor: on the plain units, and by `mma.sync` on 16-bit factors.
    fn rates(self) -> (usize, usize) {
        match self.capability {
            (8, 0) => (64, 1024),
            (8, _) | (12, _) => (128, 512),
            _ => (128, 1280),
        }
    }
}

/// A kernel and the tile of C that one of its blocks makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// `simt_128x128`
    Simt128,
    /// `simt_64x64`
    Simt64,
    /// `simt_32x32`
    Simt32,
    /// `mma_256x128`
    Mma256,
    /// `mma_128x128`
    Mma128,
    /// `mma_64x64`
    Mma64,
    /// `mma_any`
    MmaAny,
    /// `mma_tf32`
    MmaTf32,
}

/// The properties of a tile.
#[derive(Clone, Copy, Debug)]
struct Traits {
    rows: usize,
    cols: usize,
    tensor_cores: bool,
    /// Blocks that a multiprocessor holds, from the registers and shared memory that ptxas reports.
    resident: usize,
    /// Share of the units' rate that a full multiprocessor sustains, in percent.
    percent: usize,
}

impl Tile {
    /// All of them.
    pub const ALL: [Tile; 8] = [
        Tile::Simt128,
        Tile::Simt64,
        Tile::Simt32,
        Tile::Mma256,
        Tile::Mma128,
        Tile::Mma64,
        Tile::MmaAny,
        Tile::MmaTf32,
    ];

    const fn traits(self) -> Traits {
        let (rows, cols, tensor_cores, resident, percent) = match self {
            Tile::Simt128 => (128, 128, false, 2, 75),
            Tile::Simt64 => (64, 64, false, 4, 60),
            Tile::Simt32 => (32, 32, false, 8, 40),
            Tile::Mma256 => (256, 128, true, 1, 80),
            Tile::Mma128 => (128, 128, true, 2, 72),
            Tile::Mma64 => (64, 64, true, 4, 50),
            Tile::MmaAny => (64, 64, true, 4, 20),
            // Half the rate of 16-bit factors.
            Tile::MmaTf32 => (128, 128, true, 2, 36),
        };
        Traits { rows, cols, tensor_cores, resident, percent }
    }

    /// Rows and columns of C that a block makes.
    pub const fn size(self) -> (usize, usize) {
        let t = self.traits();
        (t.rows, t.cols)
    }

    /// Whether it multiplies on tensor cores, which truncate where they sum.
    pub const fn tensor_cores(self) -> bool {
        self.traits().tensor_cores
    }

    /// Whether the kernel exists for these types and can fetch factors that lie so.
    pub fn serves(self, d: &Desc) -> bool {
        let narrow = matches!(d.dtype, DType::BF16 | DType::F16);
        match self {
            Tile::Simt128 => d.dtype == DType::F32,
            Tile::Simt64 | Tile::Simt32 => d.dtype == DType::F32 || narrow,
            Tile::Mma256 | Tile::Mma128 | Tile::Mma64 => narrow && d.a.vectors(d.k, 8) && d.b.vectors(d.k, 8),
            Tile::MmaAny => narrow,
            Tile::MmaTf32 => d.dtype == DType::F32 && d.tf32 && d.a.vectors(d.k, 4) && d.b.vectors(d.k, 4),
        }
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// By which kernel.
    pub tile: Tile,
    /// Slices that k is cut into; their sums are added in ascending order by a second kernel.
    pub splits: usize,
    /// Steps of k in a slice, the last one excepted.
    pub slice: usize,
}

/// Slices start on multiples of this: so steps of 32 stay whole, and slices are whole runs of the CPU's sums.
const SLICE: usize = 256;
/// The most slices.
const MAX_SPLITS: usize = 16;
/// What starting and finishing a block costs, in steps of k; and a second launch, in clocks.
const BLOCK_COST: usize = 64;
const LAUNCH_COST: usize = 4000;
/// Products of at most so many multiply-adds have no use for tensor cores: they would be exact to less and no faster.
const TINY: usize = 32 * 32 * 32;

impl Plan {
    /// All of k in one slice.
    pub fn whole(tile: Tile, k: usize) -> Plan {
        Plan { tile, splits: 1, slice: k.max(1) }
    }

    /// k in up to `splits` slices.
    pub fn split(tile: Tile, k: usize, splits: usize) -> Plan {
        let slice = k.div_ceil(splits.max(1)).next_multiple_of(SLICE);
        Plan { tile, splits: k.div_ceil(slice).max(1), slice }
    }

    /// Blocks in all; `None` above 2⁶³.
    pub fn blocks(&self, d: &Desc) -> Option<usize> {
        let (rows, cols) = self.tile.size();
        let tiles = d.a.rows.div_ceil(rows).checked_mul(d.b.rows.div_ceil(cols))?;
        tiles.checked_mul(self.splits)?.checked_mul(d.batches)
    }

    /// Blocks in x and y of the grid: y is 1 unless x alone cannot hold them. Surplus blocks do nothing.
    pub fn grid(&self, d: &Desc) -> Option<[u32; 3]> {
        const MOST: usize = i32::MAX as usize;
        let blocks = self.blocks(d)?;
        let y = blocks.div_ceil(MOST).max(1);
        Some([u32::try_from(blocks.div_ceil(y)).ok()?, u32::try_from(y).ok()?, 1])
    }

    /// Estimated clocks.
    fn cost(&self, d: &Desc, arch: Arch) -> f64 {
        let t = self.tile.traits();
        let all = arch.multiprocessors();
        let blocks = self.blocks(d).unwrap_or(usize::MAX);
        // Blocks that follow each other on a multiprocessor, those that share it counted one by one.
        let full = blocks / (all * t.resident);
        let rest = (blocks % (all * t.resident)).div_ceil(all);
        let turns = (full * t.resident + rest) as f64;
        let (plain, tensor) = arch.rates();
        let rate = (if t.tensor_cores { tensor } else { plain } * t.percent) as f64 / 100.0;
        let clocks = turns * (t.rows * t.cols) as f64 * (self.slice.min(d.k) + BLOCK_COST) as f64 / rate;
        if self.splits == 1 {
            return clocks;
        }
        // The slices' sums go out and come back: 4 bytes each, about 16 a clock and multiprocessor.
        let sums = (d.a.rows * d.b.rows) as f64 * d.batches as f64 * (2 * self.splits) as f64;
        clocks + LAUNCH_COST as f64 + sums * 4.0 / (16 * all) as f64
    }
}

/// How to compute `d` on `arch`: of all kernels that serve it, in all useful numbers of slices, the one that should take the
/// fewest clocks; the first of equals.
pub fn plan(d: &Desc, arch: Arch) -> Plan {
    let work = d.a.rows.saturating_mul(d.b.rows).saturating_mul(d.k);
    let serves = |tile: &&Tile| {
        // Half-empty steps of k are no work for tensor cores either.
        let exact = d.dtype == DType::F32 && !Tile::MmaTf32.serves(d) || work <= TINY || d.k < 16;
        tile.serves(d) && tile.tensor_cores() != exact
    };
    let mut best = None::<(Plan, f64)>;
    for &tile in Tile::ALL.iter().filter(serves) {
        let mut last = 0;
        for splits in 1..=MAX_SPLITS.min(d.k.div_ceil(SLICE)).max(1) {
            let plan = if splits == 1 { Plan::whole(tile, d.k) } else { Plan::split(tile, d.k, splits) };
            if plan.splits == last {
                continue;
            }
            last = plan.splits;
            let cost = plan.cost(d, arch);
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((plan, cost));
            }
        }
    }
    best.map_or(Plan::whole(Tile::Simt32, d.k), |(plan, _)| plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Arch = Arch { capability: (9, 0) };

    fn packed(dtype: DType, m: usize, n: usize, k: usize, batches: usize) -> Desc {
        let a = Access { rows: m, stride: k, k_stride: 1, aligned: 8 };
        Desc { dtype, a, b: Access { rows: n, stride: 1, k_stride: n, aligned: 8 }, k, batches, tf32: false }
    }

    #[test]
    fn every_shape_gets_a_plan_that_covers_it() {
        let sizes = [1, 2, 7, 8, 31, 32, 33, 64, 100, 127, 128, 129, 500, 1000, 4096, 50257];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (&m, &n) in sizes.iter().flat_map(|m| sizes.iter().map(move |n| (m, n))) {
                for (k, batches) in
                    [(0, 1), (1, 3), (17, 70_000), (256, 1), (257, 2), (4096, 1), (100_000, 1)]
                {
                    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
                        let d = packed(dtype, m, n, k, batches);
                        let p = plan(&d, Arch { capability });
                        assert!(p.tile.serves(&d), "{d:?}: {p:?}");
                        assert!(
                            p.slice * p.splits >= k && p.slice * (p.splits - 1) < k.max(1),
                            "{d:?}: {p:?}"
                        );
                        assert!(p.splits == 1 || p.slice.is_multiple_of(SLICE), "{d:?}: {p:?}");
                        assert!(p.splits <= MAX_SPLITS, "{d:?}: {p:?}");
                        let (rows, cols) = p.tile.size();
                        let tiles = p.blocks(&d).unwrap() / p.splits / batches;
                        assert!(tiles * rows * cols >= m * n, "{d:?}: {p:?}");
                        let [x, y, z] = p.grid(&d).unwrap();
                        let blocks = p.blocks(&d).unwrap();
                        assert!(x as usize * y as usize >= blocks && z == 1, "{d:?}: {p:?}");
                        assert!(y == 1 || blocks > i32::MAX as usize, "{d:?}: {p:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn grids_beyond_2_31_blocks_go_on_in_y() {
        let d = packed(DType::F32, 1, 1, 1, 5 << 31);
        let [x, y, z] = Plan::whole(Tile::Simt32, 1).grid(&d).unwrap();
        assert!(x <= i32::MAX as u32 && y > 1 && z == 1);
        assert!(u64::from(x) * u64::from(y) >= 5 << 31);
    }

    #[test]
    fn large_products_get_large_tiles_and_small_ones_are_split() {
        let tile = |dtype, m, n, k| plan(&packed(dtype, m, n, k, 1), H100);
        assert_eq!(tile(DType::BF16, 4096, 4096, 4096), Plan::whole(Tile::Mma256, 4096));
        assert_eq!(tile(DType::F32, 4096, 4096, 4096), Plan::whole(Tile::Simt128, 4096));
        // One tile of C, much to sum.
        let few = tile(DType::BF16, 64, 64, 8192);
        assert!(few.splits > 4 && few.tile == Tile::Mma64, "{few:?}");
        assert!(tile(DType::F32, 32, 32, 8192).splits > 4);
        // Nothing to split.
        assert_eq!(tile(DType::F32, 32, 10, 64).splits, 1);
    }

    #[test]
    fn tensor_cores_get_aligned_tiles_only_where_16_bytes_are_aligned() {
        let d = packed(DType::BF16, 512, 512, 512, 1);
        assert_eq!(d.a.mode(512), 3);
        assert_eq!(d.b.mode(512), 2);
        assert!(plan(&d, H100).tile != Tile::MmaAny);
        // An odd pitch, an odd address, no unit stride.
        for a in [
            Access { stride: 513, ..d.a },
            Access { aligned: 4, ..d.a },
            Access { stride: 1024, k_stride: 2, ..d.a },
        ] {
            assert_eq!(plan(&Desc { a, ..d }, H100).tile, Tile::MmaAny, "{a:?}");
        }
        // f32 goes to tensor cores only on demand, and where it is aligned; a few elements never do.
        let tf32 = Desc { tf32: true, ..packed(DType::F32, 512, 512, 512, 1) };
        assert_eq!(plan(&tf32, H100).tile, Tile::MmaTf32);
        let odd = Desc { a: Access { stride: 513, ..tf32.a }, ..tf32 };
        assert!(!plan(&odd, H100).tile.tensor_cores());
        assert!(!plan(&packed(DType::F32, 512, 512, 512, 1), H100).tile.tensor_cores());
        assert!(!plan(&packed(DType::F16, 8, 8, 64, 1), H100).tile.tensor_cores());
        assert!(!plan(&packed(DType::F16, 512, 512, 8, 1), H100).tile.tensor_cores());
    }

    #[test]
    fn strides_that_nothing_walks_along_do_not_matter() {
        // One column of a wide matrix, read along k: not contiguous.
        let column = Access { rows: 1, stride: 1, k_stride: 24, aligned: 8 };
        assert_eq!((column.along_k(100), column.pitch(100)), (false, Some(24)));
        // One row: k is contiguous and no second line comes, so any pitch will do.
        let row = Access { rows: 1, stride: 13, k_stride: 1, aligned: 8 };
        assert!(row.vectors(100, 8));
        // One step of k.
        let thin = Access { rows: 40, stride: 8, k_stride: 5, aligned: 8 };
        assert_eq!((thin.along_k(1), thin.pitch(1)), (true, Some(8)));
        let thin = Access { rows: 40, stride: 1, k_stride: 5, aligned: 8 };
        assert_eq!((thin.along_k(1), thin.pitch(1)), (false, Some(0)));
        // A row that repeats, and neighbours that are apart.
        assert!(Access { rows: 40, stride: 0, k_stride: 1, aligned: 8 }.vectors(64, 8));
        assert!(!Access { rows: 40, stride: 2, k_stride: 80, aligned: 8 }.vectors(64, 4));
    }
}
