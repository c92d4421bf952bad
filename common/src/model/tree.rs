//! The BLAKE3 hash of a file by way of its pieces: which piece is wrong shows without the others, and that the pieces belong
//! to the file shows by its hash.
//!
//! ```text
//! bytes -> pieces of 4 MiB -> PieceHash each -> Tree -> root, as `b3sum` prints it
//! ```

use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

/// A subtree of BLAKE3, whose length is a power of two: what a flipped byte costs (decision 29).
pub const PIECE_BYTES: u64 = 4 << 20;

/// The hash of one piece: a chaining value, or, where a file has but one, the file's hash.
pub type PieceHash = [u8; 32];

/// How many pieces a file of so many bytes has. An empty one has one.
#[must_use]
pub fn piece_count(size: u64) -> u64 {
    size.div_ceil(PIECE_BYTES).max(1)
}

/// The first byte of a piece, and its length.
#[must_use]
pub fn piece_span(index: u64, size: u64) -> (u64, u64) {
    let begin = index * PIECE_BYTES;
    (begin, size.saturating_sub(begin).min(PIECE_BYTES))
}

/// Hashes one piece of a file of `size` bytes, in as many parts as it is read in.
#[derive(Debug)]
pub struct PieceHasher {
    hasher: Hasher,
    is_only: bool,
}

impl PieceHasher {
    #[must_use]
    pub fn new(index: u64, size: u64) -> Self {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(index * PIECE_BYTES);
        Self { hasher, is_only: piece_count(size) == 1 }
    }

    pub fn update(&mut self, part: &[u8]) {
        self.hasher.update(part);
    }

    /// # Panics
    /// When nothing was hashed of a file of several pieces.
    #[must_use]
    pub fn finish(&self) -> PieceHash {
        if self.is_only { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() }
    }
}

/// The hashes of a file's pieces, in their order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pieces: Vec<PieceHash>,
}

impl Tree {
    /// `None` without a piece.
    #[must_use]
    pub fn new(pieces: Vec<PieceHash>) -> Option<Self> {
        (!pieces.is_empty()).then_some(Self { pieces })
    }

    #[must_use]
    pub fn pieces(&self) -> &[PieceHash] {
        &self.pieces
    }

    /// The BLAKE3 hash of the whole file.
    #[must_use]
    pub fn root(&self) -> Hash {
        match split(&self.pieces) {
            None => Hash::from_bytes(self.pieces[0]),
            Some((left, right)) => merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash),
        }
    }
}

fn subtree(pieces: &[PieceHash]) -> ChainingValue {
    match split(pieces) {
        None => pieces[0],
        Some((left, right)) => merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash),
    }
}

/// BLAKE3 fills its left side first: as many as the largest power of two that leaves some for the right.
fn split(pieces: &[PieceHash]) -> Option<(&[PieceHash], &[PieceHash])> {
    (pieces.len() > 1).then(|| pieces.split_at(pieces.len().next_power_of_two() / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_of(bytes: &[u8]) -> Tree {
        let size = bytes.len() as u64;
        let piece = |index| {
            let (begin, length) = piece_span(index, size);
            let mut hasher = PieceHasher::new(index, size);
            // In parts, as it is read.
            let piece = &bytes[begin as usize..(begin + length) as usize];
            piece.chunks(300_000).for_each(|part| hasher.update(part));
            hasher.finish()
        };
        Tree::new((0..piece_count(size)).map(piece).collect()).expect("one piece at least")
    }

    #[test]
    fn the_pieces_of_a_file_come_to_the_hash_of_the_whole_whatever_its_length() {
        let piece = PIECE_BYTES as usize;
        let bytes: Vec<u8> = (0..piece * 7 + 4097).map(|at| (at ^ (at >> 8) ^ (at >> 17)) as u8).collect();
        for length in [
            0,
            1,
            1024,
            1025,
            piece - 1,
            piece,
            piece + 1,
            piece * 2,
            piece * 3,
            piece * 4 + 1,
            piece * 5 + 1024,
            piece * 6 + 9,
            piece * 7 + 4097,
        ] {
            let bytes = &bytes[..length];
            assert_eq!(tree_of(bytes).root(), blake3::hash(bytes), "{length} bytes");
        }
    }

    #[test]
    fn one_flipped_bit_is_in_one_piece_and_changes_the_whole() {
        let mut bytes = vec![7_u8; PIECE_BYTES as usize * 3 + 5];
        let whole = tree_of(&bytes);
        bytes[PIECE_BYTES as usize * 2 - 1] ^= 1;
        let broken = tree_of(&bytes);
        let differ: Vec<usize> =
            (0..4).filter(|index| whole.pieces()[*index] != broken.pieces()[*index]).collect();
        assert_eq!(differ, [1]);
        assert_ne!(whole.root(), broken.root());
    }

    #[test]
    fn equal_pieces_at_different_places_have_different_hashes() {
        let tree = tree_of(&vec![0; PIECE_BYTES as usize * 2]);
        assert_ne!(tree.pieces()[0], tree.pieces()[1]);
    }
}
