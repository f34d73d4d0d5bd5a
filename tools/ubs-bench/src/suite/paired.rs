//! Two things measured in turns, so that what the machine does meanwhile hits both.

use serde::Serialize;

/// One of two things that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

/// A B B A A B B A …: so many pairs, neither side always first.
pub(crate) fn order(pairs_count: usize) -> Vec<[Side; 2]> {
    let pair = |n: usize| {
        if n.is_multiple_of(2) {
            [Side::A, Side::B]
        } else {
            [Side::B, Side::A]
        }
    };
    (0..pairs_count).map(pair).collect()
}

/// Samples of both sides; entries of one index belong together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pairs<T> {
    pub(crate) a: Vec<T>,
    pub(crate) b: Vec<T>,
}

/// Measures both sides in turns.
///
/// # Errors
/// Those of `sample`.
pub(crate) fn measure<T, E>(
    pairs_count: usize,
    mut sample: impl FnMut(Side) -> Result<T, E>,
) -> Result<Pairs<T>, E> {
    let mut pairs = Pairs {
        a: Vec::new(),
        b: Vec::new(),
    };
    for side in order(pairs_count).into_iter().flatten() {
        let found = sample(side)?;
        match side {
            Side::A => pairs.a.push(found),
            Side::B => pairs.b.push(found),
        }
    }
    Ok(pairs)
}

/// A ratio of paired samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) pairs: usize,
}

/// `a / b` pair by pair; `None` without a pair whose `b` is above zero.
pub(crate) fn ratio(a: &[f64], b: &[f64]) -> Option<Ratio> {
    let pairs = a.iter().zip(b).filter(|(_, b)| **b > 0.0);
    let found: Vec<f64> = pairs.map(|(a, b)| a / b).collect();
    Some(Ratio {
        median: median(&found)?,
        min: found.iter().copied().fold(f64::INFINITY, f64::min),
        max: found.iter().copied().fold(0.0, f64::max),
        pairs: found.len(),
    })
}

/// The middle; of an even number the mean of the two in the middle.
pub(crate) fn median(of: &[f64]) -> Option<f64> {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    if sorted.len().is_multiple_of(2) {
        Some(f64::midpoint(sorted[middle - 1], *upper))
    } else {
        Some(*upper)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn neither_side_is_always_first() {
        let letters: String = order(4)
            .into_iter()
            .flatten()
            .map(|side| if side == Side::A { 'A' } else { 'B' })
            .collect();
        assert_eq!(letters, "ABBAABBA");
    }

    #[test]
    fn samples_of_a_pair_stay_together() {
        let mut n = 0;
        let sample = |_| {
            n += 1;
            Ok::<_, ()>(n)
        };
        let pairs = measure(3, sample).unwrap();
        assert_eq!((pairs.a, pairs.b), (vec![1, 4, 5], vec![2, 3, 6]));
    }

    #[test]
    fn an_error_ends_the_measurement() {
        let mut left = 3;
        let sample = |_| {
            left -= 1;
            if left == 0 { Err("broken") } else { Ok(()) }
        };
        assert_eq!(measure(9, sample), Err("broken"));
    }

    #[test]
    fn the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() {
        let seen = ratio(&[1.0, 8.0, 9.0], &[1.0, 2.0, 9.0]).unwrap();
        assert_eq!(
            (seen.median, seen.min, seen.max, seen.pairs),
            (1.0, 1.0, 4.0, 3)
        );
        assert_eq!(ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
