//! What the upstream sends, and what clients hold it to.

use std::sync::LazyLock;

/// How much is written at once.
pub const PIECE: usize = 256 * 1_024;
/// A small answer.
pub const KIB: usize = 1_024;

/// The bytes of every body: this piece, again and again.
pub static BODY: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..=250).cycle().take(PIECE).collect::<Vec<u8>>());
