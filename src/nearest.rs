//! The known name nearest to what was typed, for error messages.

/// The candidate most like `name`, if one is like it at all: at most a third of its letters (and at least one)
/// would have to change.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.chars().count().max(3);
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, _)| distance <= length.div_ceil(3))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn suggests_what_is_near_and_nothing_else() {
        let known = ["rank", "alpha", "batch_size"];
        assert_eq!(nearest("rnak", known), Some("rank"));
        assert_eq!(nearest("batchsize", known), Some("batch_size"));
        assert_eq!(nearest("temperature", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("rank", []), None);
    }
}
