//! What writing reports took.

use serde::{Deserialize, Serialize};

/// What writing texts took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effort {
    /// Passes through the network, those over prompts among them.
    pub passes: usize,
    /// Tokens that came out, ending ones among them.
    pub tokens: usize,
    /// Tokens guessed and read ahead.
    pub drafted: usize,
    /// Those of them that decoding chose.
    pub accepted: usize,
}

impl Effort {
    /// The efforts of two.
    pub fn and(self, other: Effort) -> Effort {
        Effort {
            passes: self.passes + other.passes,
            tokens: self.tokens + other.tokens,
            drafted: self.drafted + other.drafted,
            accepted: self.accepted + other.accepted,
        }
    }

    /// As results carry it; `index`: SHA-256 of the training reports' index.
    pub fn drafting(self, index: Option<&str>) -> Drafting {
        let Effort { passes, tokens, drafted, accepted } = self;
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        let index_sha256 = index.map(String::from);
        Drafting { passes, drafted, accepted, acceptance: share(accepted, drafted), tokens_per_pass: share(tokens, passes), index_sha256 }
    }
}

/// How far guesses shortened the writing of a text; the text is the same without them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drafting {
    /// Passes through the network, those over prompts among them.
    pub passes: usize,
    /// Tokens guessed and read ahead.
    pub drafted: usize,
    /// Those of them that decoding chose.
    pub accepted: usize,
    /// Accepted of drafted; 0 where none was drafted.
    pub acceptance: f64,
    /// Tokens that came out, ending ones among them, a pass (1 without guesses, one text at a time).
    pub tokens_per_pass: f64,
    /// SHA-256 of the index of training reports that guesses were made from; null without one.
    pub index_sha256: Option<String>,
}
