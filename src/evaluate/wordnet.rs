//! Synonyms from WordNet's dictionary files (wndb(5WN)), looked up as NLTK's reader does.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Where Debian's `wordnet-base` puts the dictionary.
const DEBIAN: &str = "/usr/share/wordnet";

/// A part of speech: its files' ending, and the endings that inflected words exchange (NLTK's).
const PARTS: [(&str, &[(&str, &str)]); 4] = [
    (
        "noun",
        &[("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")],
    ),
    ("verb", &[("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")]),
    ("adj", &[("er", ""), ("est", ""), ("er", "e"), ("est", "e")]),
    ("adv", &[]),
];

/// A dictionary in memory.
#[derive(Debug)]
pub struct WordNet {
    folder: PathBuf,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    index: Vec<u8>,
    data: Vec<u8>,
    exceptions: HashMap<String, Vec<String>>,
    endings: &'static [(&'static str, &'static str)],
}

impl WordNet {
    /// Reads index, data and exceptions of the four parts of speech in `folder`; a missing or broken file is named.
    pub fn open(folder: &Path) -> Result<Self> {
        let parts = PARTS.iter().map(|(name, endings)| Part::read(folder, name, endings)).collect::<Result<_>>()?;
        Ok(WordNet { folder: folder.to_path_buf(), parts })
    }

    /// The dictionary of `given`, else of `WNSEARCHDIR`, else Debian's; `None` where the last is absent.
    pub fn find(given: Option<&Path>) -> Result<Option<Self>> {
        let named = given.map(Path::to_path_buf).or_else(|| std::env::var_os("WNSEARCHDIR").map(PathBuf::from));
        match named {
            Some(folder) => WordNet::open(&folder).map(Some),
            None if Path::new(DEBIAN).join("data.noun").is_file() => WordNet::open(Path::new(DEBIAN)).map(Some),
            None => Ok(None),
        }
    }

    /// Where it was read, and the edition that its files state: `WordNet 3.0 (/usr/share/wordnet)`.
    pub fn name(&self) -> String {
        let head = String::from_utf8_lossy(&self.parts[0].data[..self.parts[0].data.len().min(4096)]).into_owned();
        let edition = head.split("WordNet ").skip(1).find(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let edition = edition.and_then(|rest| rest.split_whitespace().next()).unwrap_or("of an unstated edition");
        format!("WordNet {edition} ({})", self.folder.display())
    }

    /// All single words of the synsets that `word`, lower-case, or its base forms are in; the word itself only if it is found.
    pub fn synonyms(&self, word: &str) -> Result<HashSet<String>> {
        let mut found = HashSet::new();
        for part in &self.parts {
            for line in part.base_forms(word).iter().filter_map(|form| part.entry(form)) {
                for offset in self.offsets(line)? {
                    found.extend(part.words(offset).ok_or_else(|| self.broken(&format!("no synset at byte {offset}")))?);
                }
            }
        }
        Ok(found)
    }

    /// index line: lemma pos n_synsets n_pointers pointers... n_senses n_tagged offsets...
    fn offsets(&self, line: &str) -> Result<Vec<usize>> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<usize>().ok());
        let parsed = || {
            let (synsets, pointers) = (number(2)?, number(3)?);
            let first = 6 + pointers;
            (0..synsets).map(|at| number(first + at)).collect::<Option<Vec<usize>>>()
        };
        parsed().ok_or_else(|| self.broken(&format!("not an index line: {line}")))
    }

    fn broken(&self, what: &str) -> Error {
        Error::file(&self.folder, format!("not a WordNet dictionary: {what}"))
    }
}

impl Part {
    fn read(folder: &Path, name: &str, endings: &'static [(&'static str, &'static str)]) -> Result<Self> {
        let read = |file: String| {
            let path = folder.join(file);
            std::fs::read(&path).map_err(|e| Error::io(&path, e))
        };
        let exceptions = String::from_utf8_lossy(&read(format!("{name}.exc"))?).into_owned();
        let exception = |line: &str| {
            let mut words = line.split_whitespace().map(String::from);
            Some((words.next()?, words.collect()))
        };
        Ok(Part {
            index: read(format!("index.{name}"))?,
            data: read(format!("data.{name}"))?,
            exceptions: exceptions.lines().filter_map(exception).collect(),
            endings,
        })
    }

    /// The word and what it may be an inflected form of, once each.
    fn base_forms(&self, word: &str) -> Vec<String> {
        let regular = || self.endings.iter().filter_map(|(old, new)| Some(format!("{}{new}", word.strip_suffix(old)?))).collect();
        let mut forms: Vec<String> = self.exceptions.get(word).cloned().unwrap_or_else(regular);
        forms.push(word.to_string());
        // "s" is nothing but an ending; the licence above the index has lines whose first word is empty
        forms.retain(|form| !form.is_empty());
        forms.sort_unstable();
        forms.dedup();
        forms
    }

    /// The index's line of a lemma: lines are sorted by their bytes.
    fn entry(&self, lemma: &str) -> Option<&str> {
        let (mut low, mut high) = (0, self.index.len());
        while low < high {
            let middle = (low + high) / 2;
            let start = self.index[..middle].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let end = self.index[middle..].iter().position(|byte| *byte == b'\n').map_or(self.index.len(), |at| middle + at);
            let line = &self.index[start..end];
            let key = line.split(|byte| *byte == b' ').next().unwrap_or_default();
            match key.cmp(lemma.as_bytes()) {
                std::cmp::Ordering::Equal => return std::str::from_utf8(line).ok(),
                std::cmp::Ordering::Less => low = end + 1,
                std::cmp::Ordering::Greater => high = start,
            }
        }
        None
    }

    /// data line: offset lex_file type n_words (hexadecimal) word lex_id word lex_id ...; adjectives may end in `(p)`, `(a)`, `(ip)`.
    fn words(&self, offset: usize) -> Option<Vec<String>> {
        let line = self.data.get(offset..)?.split(|byte| *byte == b'\n').next()?;
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split_whitespace();
        if fields.next()?.parse() != Ok(offset) {
            return None;
        }
        let count = usize::from_str_radix(fields.nth(2)?, 16).ok()?;
        let words: Vec<&str> = fields.step_by(2).take(count).collect();
        let plain = |word: &&str| word.split_once('(').map_or(*word, |(plain, _)| plain).to_string();
        (words.len() == count).then(|| words.iter().map(plain).filter(|word| !word.contains('_')).collect())
    }
}
