//! The shape of an example as text: `784`, `1x28x28`.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// Sizes, at least one and none of them 0.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Extents(pub(super) Vec<usize>);

impl FromStr for Extents {
    type Err = String;

    fn from_str(text: &str) -> Result<Extents, String> {
        let sizes: Option<Vec<usize>> = text.split('x').map(|n| n.parse().ok().filter(|&n| n > 0)).collect();
        let sizes =
            sizes.filter(|sizes| sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).is_some());
        sizes.map(Extents).ok_or_else(|| "expected sizes from 1 on, such as 784 or 1x28x28".to_owned())
    }
}

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&sizes.join("x"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        for text in ["784", "1x28x28"] {
            assert_eq!(text.parse::<Extents>().unwrap().to_string(), text);
        }
        for text in ["", "0", "3x", "3x0", "-1", "a", "99999999999x99999999999"] {
            assert!(text.parse::<Extents>().is_err(), "{text}");
        }
    }
}
