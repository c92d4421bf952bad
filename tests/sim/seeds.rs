//! The seeds that once failed, kept with the reason.

/// The file, one seed a line: the number, then why it is kept. Lines beginning with `#` are for people.
const KEPT: &str = include_str!("seeds.txt");

/// Seeds to run before any others.
///
/// # Panics
/// When the file, which is part of this build, does not read so.
#[must_use]
pub fn kept_seeds() -> Vec<u64> {
    KEPT.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (seed, reason) = line.split_once(' ').expect("a seed and its reason");
            assert!(!reason.trim().is_empty(), "seed {seed} has a reason");
            seed.parse().expect("a seed is a number")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_kept_seed_has_a_number_and_a_reason() {
        let _ = super::kept_seeds();
    }
}
