//! GPUs as Slurm writes them.

/// How many `gpu:a10g` there are in `gpu:a10g:4(S:0-1),gpu:l4:2`. A word without a type
/// counts all of its kind.
pub(super) fn count(gres: &str, word: &str) -> u32 {
    let of = |item: &str| -> Option<u32> {
        // What jobs ask for has one of these in front, by Slurm's version.
        let bare = item.trim_start_matches("gres:").trim_start_matches("gres/");
        let rest = bare.split('(').next()?;
        let rest = rest.strip_prefix(word)?.strip_prefix(':')?;
        rest.rsplit(':').next()?.parse().ok()
    };
    outer_commas(gres).filter_map(of).sum()
}

/// The items of a list; commas within parentheses part none.
fn outer_commas(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    list.split(move |it: char| {
        match it {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        it == ',' && depth == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_by_their_word() {
        assert_eq!(count("gpu:a10g:4(S:0-1),gpu:l4:2", "gpu:a10g"), 4);
        assert_eq!(count("gpu:a10g:4(S:0,1),gpu:l4:2", "gpu"), 6);
        assert_eq!(count("gpu:a10g:0(IDX:N/A)", "gpu:a10g"), 0);
        assert_eq!(count("gres:gpu:a10g:1", "gpu:a10g"), 1);
        assert_eq!(count("gres/gpu:a10g:1", "gpu:a10g"), 1);
        assert_eq!(count("gpu:a10gx:1", "gpu:a10g"), 0);
        assert_eq!(count("(null)", "gpu"), 0);
    }
}
