//! Porter's stemmer (1980) with NLTK's extensions: `PorterStemmer()` of NLTK, which METEOR and Google's ROUGE use.
//!
//! The stemmers on crates.io are Snowball's or Porter's own; NLTK's differs from both (`skies`, `enjoy`, `spied`, `-alli`, `-logi`).

/// Words that NLTK does not leave to the rules.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

const STEP_2: [(&str, &str); 21] = [
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

const STEP_3: [(&str, &str); 7] =
    [("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];

const STEP_4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti", "ous", "ive", "ize",
];

/// The stem of a word; letters are lowered first.
pub fn porter_stem(word: &str) -> String {
    let lower = word.to_lowercase();
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == lower) {
        return (*stem).to_string();
    }
    // Strings of one or two letters do not go through the rules.
    if word.chars().count() <= 2 {
        return lower;
    }
    let mut stem = Stem(lower.chars().collect());
    stem.plural();
    stem.past_and_participle();
    stem.final_y();
    stem.double_suffix();
    stem.replace_if(&STEP_3, 0);
    stem.last_suffix();
    stem.final_e();
    if stem.ends("ll") && measure(&stem.0[..stem.0.len() - 1]) > 1 {
        stem.0.pop();
    }
    stem.0.into_iter().collect()
}

struct Stem(Vec<char>);

impl Stem {
    fn ends(&self, suffix: &str) -> bool {
        let (own, suffix) = (self.0.iter().rev(), suffix.chars().rev());
        self.0.len() >= suffix.clone().count() && own.zip(suffix).all(|(a, b)| *a == b)
    }

    /// What stands before a suffix.
    fn before(&self, suffix: &str) -> &[char] {
        &self.0[..self.0.len() - suffix.len()]
    }

    fn replace(&mut self, suffix: &str, by: &str) {
        self.0.truncate(self.0.len() - suffix.len());
        self.0.extend(by.chars());
    }

    /// The first of the rules whose suffix fits is applied if what stands before it measures more than `least`, else none is.
    fn replace_if(&mut self, rules: &[(&str, &str)], least: usize) {
        let rule = rules.iter().find(|(suffix, _)| self.ends(suffix));
        if let Some((suffix, by)) = rule.filter(|(suffix, _)| measure(self.before(suffix)) > least) {
            self.replace(suffix, by);
        }
    }

    /// Step 1a.
    fn plural(&mut self) {
        match () {
            () if self.ends("ies") && self.0.len() == 4 => self.replace("ies", "ie"),
            () if self.ends("sses") => self.replace("sses", "ss"),
            () if self.ends("ies") => self.replace("ies", "i"),
            () if self.ends("ss") => (),
            () if self.ends("s") => self.replace("s", ""),
            () => (),
        }
    }

    /// Step 1b.
    fn past_and_participle(&mut self) {
        if self.ends("ied") {
            return self.replace("ied", if self.0.len() == 4 { "ie" } else { "i" });
        }
        if self.ends("eed") {
            return self.replace_if(&[("eed", "ee")], 0);
        }
        let vowel = |letters: &[char]| !consonants(letters).iter().all(|consonant| *consonant);
        let Some(suffix) = ["ed", "ing"].into_iter().find(|suffix| self.ends(suffix) && vowel(self.before(suffix))) else { return };
        self.replace(suffix, "");
        match () {
            () if ["at", "bl", "iz"].iter().any(|end| self.ends(end)) => self.0.push('e'),
            () if ends_double_consonant(&self.0) => {
                if !matches!(self.0.last(), Some('l' | 's' | 'z')) {
                    self.0.pop();
                }
            }
            () if measure(&self.0) == 1 && ends_cvc(&self.0) => self.0.push('e'),
            () => (),
        }
    }

    /// Step 1c: NLTK wants a consonant before the y, and more than one letter.
    fn final_y(&mut self) {
        let before = self.0.len() - 1;
        if self.ends("y") && before > 1 && consonants(&self.0[..before])[before - 1] {
            self.replace("y", "i");
        }
    }

    /// Step 2; NLTK applies `-alli` first, and the rules to what it leaves.
    fn double_suffix(&mut self) {
        while self.ends("alli") && measure(self.before("alli")) > 0 {
            self.replace("alli", "al");
        }
        if STEP_2.iter().any(|(suffix, _)| self.ends(suffix)) {
            return self.replace_if(&STEP_2, 0);
        }
        // The l of -logi counts with the stem, so that geo- and theo- work like archaeo-.
        if self.ends("logi") && measure(&self.0[..self.0.len() - 3]) > 0 {
            self.replace("logi", "log");
        }
    }

    /// Step 4.
    fn last_suffix(&mut self) {
        let Some(suffix) = STEP_4.into_iter().find(|suffix| self.ends(suffix)) else { return };
        let before = self.before(suffix);
        if measure(before) > 1 && (suffix != "ion" || matches!(before.last(), Some('s' | 't'))) {
            self.replace(suffix, "");
        }
    }

    /// Step 5a.
    fn final_e(&mut self) {
        if !self.ends("e") {
            return;
        }
        let before = self.before("e");
        let size = measure(before);
        if size > 1 || (size == 1 && !ends_cvc(before)) {
            self.0.pop();
        }
    }
}

/// Which letters are consonants: all but a, e, i, o, u, and y after a consonant.
fn consonants(letters: &[char]) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(letters.len());
    for letter in letters {
        flags.push(match letter {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => flags.last().is_none_or(|before| !before),
            _ => true,
        });
    }
    flags
}

/// How often a vowel is followed by a consonant.
fn measure(letters: &[char]) -> usize {
    consonants(letters).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn ends_double_consonant(letters: &[char]) -> bool {
    matches!(letters, [.., a, b] if a == b) && consonants(letters).last() == Some(&true)
}

/// Consonant, vowel, consonant but w, x, y; or (NLTK) two letters, a vowel and a consonant.
fn ends_cvc(letters: &[char]) -> bool {
    match consonants(letters)[..] {
        [false, true] => true,
        [.., true, false, true] => !matches!(letters.last(), Some('w' | 'x' | 'y')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nltks_extensions_are_kept() {
        let cases =
            [("skies", "sky"), ("enjoy", "enjoy"), ("spied", "spi"), ("dies", "die"), ("geology", "geolog"), ("effusions", "effus")];
        for (word, stem) in cases {
            assert_eq!(porter_stem(word), stem, "{word}");
        }
    }
}
