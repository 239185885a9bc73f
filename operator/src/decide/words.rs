//! Lists of names, short enough to be read.

/// Names that are written out, at most.
const NAMED: usize = 3;

/// `a`, `a and b`, `a, b and c`, `a, b, c and 7 more`.
pub(super) fn list<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let names: Vec<S> = names.into_iter().collect();
    let named: Vec<&str> = names.iter().take(NAMED).map(AsRef::as_ref).collect();
    match (names.len() - named.len(), named.split_last()) {
        (_, None) => "nothing".to_owned(),
        (0, Some((last, []))) => (*last).to_owned(),
        (0, Some((last, others))) => format!("{} and {last}", others.join(", ")),
        (more, Some(_)) => format!("{} and {more} more", named.join(", ")),
    }
}

/// `1 node`, `2 nodes`.
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The one word for one, the other for several.
pub(super) const fn agree(number: usize, one: &'static str, several: &'static str) -> &'static str {
    if number == 1 { one } else { several }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_short() {
        for (names, expected) in [
            ("", "nothing"),
            ("a", "a"),
            ("a b", "a and b"),
            ("a b c", "a, b and c"),
            ("a b c d e", "a, b, c and 2 more"),
        ] {
            assert_eq!(list(names.split_whitespace()), expected);
        }
        assert_eq!(
            (count(1, "node"), count(0, "node")),
            ("1 node".into(), "0 nodes".into())
        );
    }
}
