//! Where prompts that begin alike go: rendezvous hashing with bounded loads.
//!
//! Each edge computes the same order of replicas for a prefix (highest random weight; Thaler and Ravishankar 1998), so
//! that all send it to the same one with no word between them, and a replica that comes or goes moves only its own
//! share. The bound (Mirrokni, Thorup, Zadimoghaddam 2018) keeps a popular prefix from piling up: a replica takes it as
//! long as it carries less than c times the mean, then the next in order does.

use super::pick::Seen;

/// c, times 100. HAProxy's manual calls 125 to 200 reasonable (`hash-balance-factor`); the even end of that, since a
/// token of a fuller batch comes later for everybody in it.
const LOAD_FACTOR_PERCENT: u64 = 125;

/// Below this many requests no replica is too busy for its prefixes. A batch of four decodes as fast as one alone, and
/// in an idle fleet 1.25 times the mean is less than one request.
const LOAD_FREE: u64 = 4;

/// Spreads nearby values over all 64 bits (splitmix64's finaliser, Steele et al. 2014).
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The same in every build and on every edge: 8 bytes a step by the golden ratio, then mixed.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let begin = 0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64;
    let all = bytes.chunks(8).fold(begin, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ (hash >> 32)
    });
    mix(all)
}

/// The most requests a replica may carry, the next one included: c times the mean, rounded up.
fn load_max(seen: &[Seen<'_>]) -> u64 {
    let total: u64 = seen.iter().map(|one| u64::from(one.load)).sum::<u64>() + 1;
    (total * LOAD_FACTOR_PERCENT).div_ceil(seen.len() as u64 * 100).max(LOAD_FREE)
}

/// The first in the prefix's order that is within the bound. There is one: not all are above the mean.
pub(super) fn affine<'s, 'c>(seen: &'s [Seen<'c>], prefix: u64) -> Option<&'s Seen<'c>> {
    let load_max = load_max(seen);
    let willing = seen.iter().filter(|one| u64::from(one.load) < load_max);
    willing.max_by_key(|one| mix(prefix ^ one.candidate.key()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_in_every_build() {
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash(b"cic-local-here-none-dev-20261124-001-node001"), 0x0b50_a3dc_b2d2_960e);
    }

    #[test]
    fn no_bit_of_a_name_is_without_effect() {
        let name = *b"node-0001-of-the-fleet";
        let whole = hash(&name);
        for at in 0..name.len() {
            let mut other = name;
            other[at] ^= 1;
            let differing = (hash(&other) ^ whole).count_ones();
            assert!((12..=52).contains(&differing), "byte {at}: {differing} bits");
        }
    }
}
