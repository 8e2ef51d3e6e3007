//! Numbers of an account as people read them: one form for all commands and messages.

use std::fmt::{Display, Formatter, Result};

/// Numbers from this one on are written with a power of ten.
const LARGE: f64 = 1e9;
/// Numbers below this one are written with a power of ten, where no number of decimals is asked for.
const SMALL: f64 = 1e-4;
/// Decimals of what is written with a power of ten, where a number of decimals is asked for.
const MANTISSA: usize = 3;

/// An epsilon, delta or noise multiplier for people. With a precision (`{:.4}`) it has that many decimals; what these would show as nothing,
/// and what is too large to be read, has a power of ten.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure(pub f64);

impl Display for Figure {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let size = self.0.abs();
        let text = match f.precision() {
            _ if self.0.is_nan() => "not a number".to_owned(),
            _ if size.is_infinite() => {
                if self.0 > 0.0 {
                    "infinite".to_owned()
                } else {
                    "minus infinite".to_owned()
                }
            }
            _ if size == 0.0 => "0".to_owned(),
            None if (SMALL..LARGE).contains(&size) => self.0.to_string(),
            None => format!("{:e}", self.0),
            Some(decimals) => {
                let least = 1.0 / 10f64.powi(i32::try_from(decimals).unwrap_or(i32::MAX));
                if (least..LARGE).contains(&size) {
                    format!("{:.decimals$}", self.0)
                } else {
                    format!("{:.MANTISSA$e}", self.0)
                }
            }
        };
        match f.width() {
            Some(width) => write!(f, "{text:>width$}"),
            None => f.write_str(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_has_more_digits_than_one_reads_and_none_that_is_something_looks_like_nothing() {
        let plain = [1.0, 0.01, 1e-5, 1e-300, 1e300, 16.7, 0.0, f64::INFINITY];
        let shown = plain.map(|number| Figure(number).to_string());
        assert_eq!(shown, ["1", "0.01", "1e-5", "1e-300", "1e300", "16.7", "0", "infinite"]);
        let with = [1.09259, 1e-8, 9.99e-5, 1e-4, 5e300, -1e-9, 0.0];
        let shown = with.map(|number| format!("{:.4}", Figure(number)));
        assert_eq!(shown, ["1.0926", "1.000e-8", "9.990e-5", "0.0001", "5.000e300", "-1.000e-9", "0"]);
        for exponent in -320..308 {
            let shown =
                format!("{:.6} {}", Figure(1.5f64 * 10f64.powi(exponent)), Figure(10f64.powi(exponent)));
            assert!(shown.len() < 64, "{shown}");
        }
    }
}
