//! Numbers within bounds. Owns the comparison; never chooses the bounds.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::ValidationError;

/// Returns `value` when it lies within `range`, both ends included.
///
/// With finite bounds this also refuses NaN and the infinities, which no finite range contains.
///
/// # Errors
/// [`ValidationError::OutOfRange`], naming `field` and both bounds.
pub fn in_range<T>(
    field: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, ValidationError>
where
    T: PartialOrd + Display,
{
    if range.contains(&value) {
        return Ok(value);
    }
    let (min, max) = range.into_inner();
    Err(ValidationError::OutOfRange { field, min: min.to_string(), max: max.to_string() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_ends_are_inside_and_their_neighbours_are_not() {
        for (value, inside) in
            [(0, false), (1, true), (2, true), (9, true), (10, true), (11, false)]
        {
            assert_eq!(in_range("top_k", value, 1..=10).is_ok(), inside, "{value}");
        }
        let message = in_range("top_k", 11, 1..=10).unwrap_err().to_string();
        assert_eq!(message, "top_k must be from 1 to 10");
    }

    #[test]
    fn a_float_must_be_a_finite_number() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, 2.1] {
            assert!(in_range("temperature", bad, 0.0..=2.0).is_err(), "{bad}");
        }
        for good in [0.0, -0.0, 2.0, f64::MIN_POSITIVE] {
            assert!(in_range("temperature", good, 0.0..=2.0).is_ok(), "{good}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_comparison(value in any::<i64>(), a in any::<i64>(), b in any::<i64>()) {
            let (min, max) = (a.min(b), a.max(b));
            prop_assert_eq!(in_range("n", value, min..=max).is_ok(), min <= value && value <= max);
        }
    }
}
