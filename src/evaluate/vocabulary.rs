//! Words as numbers: what is counted often is compared cheaply.

use std::collections::HashMap;

/// Words numbered in the order in which they come.
#[derive(Debug, Default, Clone)]
pub struct Vocabulary {
    words: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    /// The number of a word, a new one if it is new.
    pub fn id(&mut self, word: &str) -> u32 {
        if let Some(id) = self.ids.get(word) {
            return *id;
        }
        let id = self.words.len() as u32;
        self.words.push(word.to_string());
        self.ids.insert(word.to_string(), id);
        id
    }

    /// The number of a word that is known.
    pub fn get(&self, word: &str) -> Option<u32> {
        self.ids.get(word).copied()
    }

    /// The words, the first numbered 0.
    pub fn words(&self) -> &[String] {
        &self.words
    }
}
