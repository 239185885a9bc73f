//! Texts that come back thousands of times, kept once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names of nodes, numbered in the order in which they were first seen. A number is never used again: a cluster sees few
/// enough names of nodes.
#[derive(Debug, Default)]
pub struct Names {
    numbers: BTreeMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Names {
    /// The number of a name.
    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let name: Arc<str> = name.into();
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }

    /// The name with a number.
    pub fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("?", |name| name)
    }
}

/// Texts, each kept once for as long as somebody holds it.
#[derive(Debug, Default)]
pub struct Texts {
    texts: BTreeSet<Arc<str>>,
    sweep_at: usize,
}

impl Texts {
    /// The shared copy of a text.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.texts.get(text) {
            return Arc::clone(shared);
        }
        if self.texts.len() >= self.sweep_at {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = self.texts.len() * 2 + 1024;
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number() {
        let mut names = Names::default();
        assert_eq!(
            [names.number("b"), names.number("a"), names.number("b")],
            [0, 1, 0]
        );
        assert_eq!((names.name(1), names.name(7)), ("a", "?"));
    }

    #[test]
    fn texts_that_nobody_holds_are_swept() {
        let mut texts = Texts::default();
        let held = texts.share("held");
        for number in 0..10_000 {
            texts.share(&number.to_string());
        }
        assert!(texts.texts.len() < 2_100);
        assert!(Arc::ptr_eq(&held, &texts.share("held")));
    }
}
