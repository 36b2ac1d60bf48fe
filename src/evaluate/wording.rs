//! How near generated wording is to the reference's: BLEU, ROUGE-L, CIDEr, METEOR, chrF, BERTScore, each by its conventions.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use super::bert_score::BertScore;
use super::bleu::{BleuCounts, Smoothing, Words};
use super::chrf::ChrfCounts;
use super::cider::Cider;
use super::meteor::Meteor;
use super::meteor_jar::meteor_jar;
use super::porter::porter_stem;
use super::rouge::{rouge_l, rouge_l_google};
use super::scores::Scores;
use super::tokens::{plain, ptb_like, rouge_words};
use super::vocabulary::Vocabulary;
use super::wordnet::WordNet;
use super::{Pair, mean};
use crate::Result;
use crate::text::Labeller;

/// What scores need that is not in this program.
#[derive(Debug, Default)]
pub struct Instruments {
    /// Who reads the findings out of reports.
    pub labeller: Labeller,
    /// METEOR's synonyms; without it METEOR is named `meteor-no-synonyms`.
    pub wordnet: Option<WordNet>,
    /// `meteor-1.5.jar`, run by the `java` of the path.
    pub meteor_jar: Option<PathBuf>,
    /// An encoder for BERTScore.
    pub bert_score: Option<BertScore>,
}

impl Instruments {
    /// What can be found without being told: a dictionary where `WNSEARCHDIR` or Debian has one.
    pub fn at_hand() -> Result<Self> {
        Ok(Instruments { wordnet: WordNet::find(None)?, ..Instruments::default() })
    }

    /// What each of them is, for the record.
    pub fn names(&self) -> BTreeMap<String, String> {
        let wordnet = self.wordnet.as_ref().map(|wordnet| ("wordnet".to_string(), wordnet.name()));
        let jar = self.meteor_jar.as_ref().map(|jar| ("meteor_jar".to_string(), jar.display().to_string()));
        let bert = self.bert_score.as_ref().map(|bert| ("bert_score".to_string(), bert.name()));
        [wordnet, jar, bert].into_iter().flatten().collect()
    }
}

/// Texts as numbered words.
struct Numbered {
    name: &'static str,
    words: Vocabulary,
    pairs: Vec<Words<u32>>,
}

impl Numbered {
    fn new(name: &'static str, pairs: &[Pair], tokenise: fn(&str) -> Vec<String>) -> Self {
        let tokens: Vec<[Vec<String>; 2]> = pairs.par_iter().map(|pair| [tokenise(&pair.generated), tokenise(&pair.reference)]).collect();
        let mut words = Vocabulary::default();
        let mut number = |text: &Vec<String>| text.iter().map(|word| words.id(word)).collect::<Vec<u32>>();
        let pairs = tokens.iter().map(|[generated, reference]| (number(generated), number(reference))).collect();
        Numbered { name, words, pairs }
    }

    fn each(&self, score: impl Fn(&[u32], &[u32]) -> f64 + Send + Sync) -> Vec<f64> {
        self.pairs.par_iter().map(|(generated, reference)| score(generated, reference)).collect()
    }
}

/// Adds all scores of wording; returns each study's BLEU counts by tokenisation.
pub(super) fn add_metrics(pairs: &[Pair], instruments: &Instruments, scores: &mut Scores) -> Result<Vec<BTreeMap<String, BleuCounts>>> {
    let mut counts = vec![BTreeMap::new(); pairs.len()];
    let texts = [Numbered::new("ptb_like", pairs, ptb_like), Numbered::new("plain", pairs, plain)];
    for texts in &texts {
        let own = add_bleu(texts, scores);
        counts.iter_mut().zip(own).for_each(|(study, own)| {
            study.insert(texts.name.to_string(), own);
        });
        scores.add_mean(&format!("rouge_l.coco.{}", texts.name), texts.each(rouge_l));
        scores.add_mean(&format!("cider_d.coco.{}", texts.name), Cider::D.score(&texts.pairs));
        scores.add_mean(&format!("cider.paper.{}", texts.name), Cider::Paper.score(&texts.pairs));
    }
    add_meteor(pairs, &texts[0], instruments, scores)?;
    for (name, stem) in [("rouge_l.google.no_stem", None), ("rouge_l.google.stem", Some(porter_stem as fn(&str) -> String))] {
        let words = |text: &str| rouge_words(text, stem);
        scores.add_mean(name, each(pairs, |pair| rouge_l_google(&words(&pair.generated), &words(&pair.reference))));
    }
    add_chrf(pairs, scores);
    if let Some(bert) = &instruments.bert_score {
        let found = bert.score(&pairs.iter().map(|pair| (pair.generated.as_str(), pair.reference.as_str())).collect::<Vec<_>>())?;
        for (at, part) in ["precision", "recall", "f1"].into_iter().enumerate() {
            scores.add_mean(&format!("bert_score.{part}.{}", bert.convention()), found.iter().map(|values| values[at]));
        }
    }
    Ok(counts)
}

fn each<T: Send>(pairs: &[Pair], score: impl Fn(&Pair) -> T + Send + Sync) -> Vec<T> {
    pairs.par_iter().map(score).collect()
}

fn add_bleu(texts: &Numbered, scores: &mut Scores) -> Vec<BleuCounts> {
    let counts: Vec<BleuCounts> = texts.pairs.par_iter().map(|(generated, reference)| BleuCounts::of(generated, reference)).collect();
    let mut total = BleuCounts::default();
    counts.iter().for_each(|own| total.add(own));
    let corpus = total.scores();
    for (order, value) in (1..).zip(corpus) {
        scores.add(format!("bleu_{order}.corpus.{}", texts.name), value);
        let smoothed = counts.iter().map(|own| own.smoothed(Smoothing::Method1)[order - 1]);
        scores.add_mean(&format!("bleu_{order}.sentence_method1.{}", texts.name), smoothed);
    }
    scores.add(format!("bleu_mean.corpus.{}", texts.name), mean(&corpus));
    for (name, smoothing) in [("method2", Smoothing::Method2), ("method4", Smoothing::Method4)] {
        scores.add_mean(&format!("bleu_4.sentence_{name}.{}", texts.name), counts.iter().map(|own| own.smoothed(smoothing)[3]));
    }
    counts
}

fn add_meteor(pairs: &[Pair], ptb_like: &Numbered, instruments: &Instruments, scores: &mut Scores) -> Result<()> {
    // NLTK lowers the words before it compares them.
    let lower = Numbered::new("plain", pairs, |text| plain(&text.to_lowercase()));
    let name = if instruments.wordnet.is_some() { "meteor" } else { "meteor-no-synonyms" };
    for texts in [ptb_like, &lower] {
        let meteor = Meteor::new(texts.words.words(), instruments.wordnet.as_ref())?;
        scores.add_mean(&format!("{name}.nltk.{}", texts.name), texts.each(|generated, reference| meteor.score(generated, reference)));
    }
    if let Some(jar) = &instruments.meteor_jar {
        let joined = |words: &[u32]| words.iter().map(|id| ptb_like.words.words()[*id as usize].as_str()).collect::<Vec<_>>().join(" ");
        let lines: Vec<(String, String)> =
            ptb_like.pairs.iter().map(|(generated, reference)| (joined(generated), joined(reference))).collect();
        scores.add("meteor.1_5.ptb_like", meteor_jar(jar, &lines)?.corpus);
    }
    Ok(())
}

fn add_chrf(pairs: &[Pair], scores: &mut Scores) {
    let counts = each(pairs, |pair| ChrfCounts::of(&pair.generated, &pair.reference));
    let mut total = ChrfCounts::default();
    counts.iter().for_each(|own| total.add(own));
    scores.add("chrf2.corpus.raw", total.score());
    scores.add_mean("chrf2.sentence.raw", counts.iter().map(ChrfCounts::score));
}
