//! What a `.cu` file declares: its architectures and its kernels. `parse` reads the text into this.
//!
//! ```text
//! // archs: 80 86 90a ptx80           line 1: machine code for sm_80, sm_86, sm_90a; PTX of compute_80
//! KERNEL(name, item, ...)             at column 1, outside #if, directly above the body `{`
//! item   = types(T: scalar, ...)      a type parameter: instances for each scalar
//!        | functors(F: name, ...)     a type parameter over functors; the name of a macro M stands for every X of the lines
//!                                     `M(X, ...` at column 1 of the file
//!        | ints(N: integer, ...)      an integer parameter
//!        | in(type, name, len) | out(type, name, len) | inout(type, name, len)       a device buffer of `len` elements
//!        | opt_in(..) | opt_out(..) | opt_inout(..)                                  the same, or null
//!        | map(name)                  a tensor map
//!        | val(scalar, name) | val(Dims, name) | val(Strides, name)                  by value
//!        | arch(sm_90a)               instances exist on that architecture only
//!        | launch(grid = plan | dims, block = dims of integers, shared = plan | expr [, blocks = integer])
//! len    = any | expr
//! type   = a type parameter | scalar      scalar = f32 f64 f16 bf16 u8 u32 i32 u64 i64
//! dims   = expr | (expr, expr) | (expr, expr, expr)
//! expr   = integer | an integer val or ints parameter | ceil_div(expr, expr) | expr (+ - * /) expr | (expr)
//! ```
//! There is an instance for each combination of the parameters' values, named `name_T_F_N` in the order they are declared.
//! The order of buffers, maps and vals is the order of the argument struct. `//` lines directly above are the doc.

/// The element types of the GPU side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    F32,
    F64,
    F16,
    Bf16,
    U8,
    U32,
    I32,
    U64,
    I64,
}

impl Scalar {
    pub const ALL: [(&'static str, Scalar); 9] = [
        ("f32", Scalar::F32),
        ("f64", Scalar::F64),
        ("f16", Scalar::F16),
        ("bf16", Scalar::Bf16),
        ("u8", Scalar::U8),
        ("u32", Scalar::U32),
        ("i32", Scalar::I32),
        ("u64", Scalar::U64),
        ("i64", Scalar::I64),
    ];

    /// The name in kernels and in declarations.
    pub fn name(self) -> &'static str {
        Scalar::ALL.iter().find(|(_, s)| *s == self).map_or("", |(name, _)| name)
    }

    pub fn size(self) -> usize {
        match self {
            Scalar::U8 => 1,
            Scalar::F16 | Scalar::Bf16 => 2,
            Scalar::F32 | Scalar::U32 | Scalar::I32 => 4,
            Scalar::F64 | Scalar::U64 | Scalar::I64 => 8,
        }
    }

    pub fn is_integer(self) -> bool {
        !matches!(self, Scalar::F32 | Scalar::F64 | Scalar::F16 | Scalar::Bf16)
    }

    /// The crate's `DType` of such a buffer. It has no unsigned types above a byte: their bits travel as signed ones.
    pub fn dtype(self) -> &'static str {
        match self {
            Scalar::F32 => "F32",
            Scalar::F64 => "F64",
            Scalar::F16 => "F16",
            Scalar::Bf16 => "BF16",
            Scalar::U8 => "U8",
            Scalar::U32 | Scalar::I32 => "I32",
            Scalar::U64 | Scalar::I64 => "I64",
        }
    }
}

/// The type of a buffer's elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ty {
    /// A type parameter.
    Param(String),
    Is(Scalar),
}

impl Ty {
    pub fn name(&self) -> &str {
        match self {
            Ty::Param(name) => name,
            Ty::Is(scalar) => scalar.name(),
        }
    }
}

/// What a kernel does with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dir {
    In,
    Out,
    InOut,
}

/// What is passed by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Val {
    Scalar(Scalar),
    Dims,
    Strides,
}

impl Val {
    /// The name in C++ and in Rust alike.
    pub fn name(self) -> &'static str {
        match self {
            Val::Scalar(scalar) => scalar.name(),
            Val::Dims => "Dims",
            Val::Strides => "Strides",
        }
    }
}

/// Integer arithmetic over vals and ints parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    Int(u64),
    Name(String),
    CeilDiv(Box<Expr>, Box<Expr>),
    Op(char, Box<Expr>, Box<Expr>),
}

impl Expr {
    /// Calls `f` with each name in it.
    pub fn names(&self, f: &mut dyn FnMut(&str)) {
        match self {
            Expr::Int(_) => {}
            Expr::Name(name) => f(name),
            Expr::CeilDiv(a, b) | Expr::Op(_, a, b) => {
                a.names(f);
                b.names(f);
            }
        }
    }

    /// Its value if there is no name in it.
    pub fn constant(&self) -> Option<u64> {
        match self {
            Expr::Int(n) => Some(*n),
            Expr::Name(_) => None,
            Expr::CeilDiv(a, b) => {
                let (a, b) = (a.constant()?, b.constant()?);
                (b != 0).then(|| a.div_ceil(b))
            }
            Expr::Op(op, a, b) => {
                let (a, b) = (a.constant()?, b.constant()?);
                match op {
                    '+' => a.checked_add(b),
                    '-' => a.checked_sub(b),
                    '*' => a.checked_mul(b),
                    _ => a.checked_div(b),
                }
            }
        }
    }

    /// As one would write it.
    pub fn text(&self) -> String {
        let inner = |e: &Expr| match e {
            Expr::Op(..) => format!("({})", e.text()),
            _ => e.text(),
        };
        match self {
            Expr::Int(n) => n.to_string(),
            Expr::Name(name) => name.clone(),
            Expr::CeilDiv(a, b) => format!("ceil_div({}, {})", a.text(), b.text()),
            Expr::Op(op, a, b) => format!("{} {op} {}", inner(a), inner(b)),
        }
    }
}

/// One member of the argument struct.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    /// `len`: `None` is `any`.
    Buffer {
        dir: Dir,
        optional: bool,
        ty: Ty,
        name: String,
        len: Option<Expr>,
    },
    Map {
        name: String,
    },
    Val {
        ty: Val,
        name: String,
    },
}

impl Param {
    pub fn name(&self) -> &str {
        match self {
            Param::Buffer { name, .. } | Param::Map { name } | Param::Val { name, .. } => name,
        }
    }

    /// Size and alignment in the argument struct.
    pub fn layout(&self) -> (usize, usize) {
        match self {
            Param::Buffer { .. } => (8, 8),
            Param::Map { .. } => (128, 64),
            Param::Val { ty: Val::Scalar(scalar), .. } => (scalar.size(), scalar.size()),
            Param::Val { ty: Val::Dims, .. } => (72, 8),
            Param::Val { ty: Val::Strides, .. } => (64, 8),
        }
    }
}

/// What a template parameter ranges over.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    Types(Vec<Scalar>),
    Functors(Vec<String>),
    Ints(Vec<u32>),
}

impl Values {
    /// The values' names, as in C++ and in symbols.
    pub fn names(&self) -> Vec<String> {
        match self {
            Values::Types(types) => types.iter().map(|t| t.name().to_owned()).collect(),
            Values::Functors(names) => names.clone(),
            Values::Ints(ints) => ints.iter().map(u32::to_string).collect(),
        }
    }
}

/// A template parameter.
#[derive(Debug, Clone)]
pub struct Axis {
    pub name: String,
    pub values: Values,
}

/// A declared kernel. `grid` and `shared`: `None` is `plan`.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub name: String,
    pub doc: Vec<String>,
    pub line: usize,
    pub axes: Vec<Axis>,
    pub params: Vec<Param>,
    pub arch: Option<String>,
    pub grid: Option<Vec<Expr>>,
    pub block: [u32; 3],
    pub shared: Option<Expr>,
    /// Blocks that a multiprocessor should hold: the compiler spends registers accordingly. Without it ptxas may prefer
    /// another block to a few spilled registers.
    pub blocks: Option<u32>,
}

impl Kernel {
    /// Offset of each parameter, then the size and the alignment of the whole.
    pub fn layout(&self) -> (Vec<usize>, usize, usize) {
        let (mut at, mut most, mut offsets) = (0_usize, 1, Vec::new());
        for param in &self.params {
            let (size, align) = param.layout();
            at = at.next_multiple_of(align);
            offsets.push(at);
            at += size;
            most = most.max(align);
        }
        (offsets, at.next_multiple_of(most).max(1), most)
    }

    /// The template arguments of each instance; the last parameter changes fastest. One empty list if it has none.
    pub fn instances(&self) -> Vec<Vec<String>> {
        let mut all = vec![Vec::new()];
        for axis in &self.axes {
            let names = axis.values.names();
            all = all
                .iter()
                .flat_map(|head| names.iter().map(|n| head.iter().chain([n]).cloned().collect()))
                .collect();
        }
        all
    }

    /// The symbol of an instance.
    pub fn symbol(&self, arguments: &[String]) -> String {
        arguments.iter().fold(self.name.clone(), |symbol, argument| symbol + "_" + argument)
    }

    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }
}

/// A target of nvcc: machine code for `sm_NAME`, or PTX of `compute_NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arch {
    pub name: String,
    pub ptx: bool,
}

impl Arch {
    /// Reads `90a` or `ptx80`.
    pub fn parse(word: &str) -> Option<Arch> {
        let (name, ptx) = word.strip_prefix("ptx").map_or((word, false), |name| (name, true));
        let digits = name.strip_suffix(['a', 'f']).unwrap_or(name);
        let number = digits.len() >= 2 && digits.bytes().all(|b| b.is_ascii_digit());
        number.then(|| Arch { name: name.to_owned(), ptx })
    }

    /// As in the `archs` line.
    pub fn text(&self) -> String {
        format!("{}{}", if self.ptx { "ptx" } else { "" }, self.name)
    }
}

/// A kernel that may spill or have a stack frame, and why: a line `// spills: name, because ...`.
#[derive(Debug, Clone)]
pub struct Allowance {
    pub kernel: String,
    pub reason: String,
}

/// A `.cu` file.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The name without folder and extension.
    pub stem: String,
    pub archs: Vec<Arch>,
    pub kernels: Vec<Kernel>,
    pub allowances: Vec<Allowance>,
}

impl Unit {
    /// From the root of the repository.
    pub fn path(&self) -> String {
        format!("kernels/{}.cu", self.stem)
    }
}

/// What is wrong with a file, and where; both count from 1.
#[derive(Debug)]
pub struct Error {
    pub line: usize,
    pub column: usize,
    pub what: String,
}
