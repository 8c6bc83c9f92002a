//! Finds what someone may have meant by a misspelt key.

/// Most changes at which a name is still taken for a misspelling.
const DISTANCE_MAX: usize = 3;

/// Returns the candidate with the fewest changed characters, where that is few enough to be a misspelling.
pub(crate) fn nearest<'a>(typed: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let most = DISTANCE_MAX.min(typed.chars().count() / 3);
    candidates
        .iter()
        .map(|candidate| (distance(typed, candidate), *candidate))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, one row of the table at a time.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut previous = i + 1;
        let mut next = Vec::with_capacity(row.len());
        next.push(previous);
        for (b, above) in right.iter().zip(row.iter().skip(1)) {
            let cost = (diagonal + usize::from(a != *b)).min(above + 1).min(previous + 1);
            diagonal = *above;
            previous = cost;
            next.push(cost);
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_near_name_is_suggested() {
        let keys = ["bind", "name", "queen_url", "workers_max"];
        for (typed, expected) in [
            ("bnd", Some("bind")),
            ("worker_max", Some("workers_max")),
            ("queen_ur1", Some("queen_url")),
            ("colour", None),
            ("x", None),
            ("nope", None),
        ] {
            assert_eq!(nearest(typed, &keys), expected, "{typed}");
        }
    }

    #[test]
    fn the_distance_counts_changes() {
        for (left, right, expected) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }
}
