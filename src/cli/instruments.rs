//! What scores need from outside, as arguments.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::evaluate::{BertScore, Instruments, WordNet};

use super::run::LabellerArgs;

/// What scores need from outside.
#[derive(Debug, Args)]
#[command(next_help_heading = "Instruments")]
pub struct InstrumentArgs {
    #[command(flatten)]
    labeller: LabellerArgs,
    /// WordNet's dictionary for METEOR's synonyms: index.*, data.*, *.exc. Without it: WNSEARCHDIR, then Debian's wordnet-base, then none.
    #[arg(long, value_name = "FOLDER")]
    wordnet: Option<PathBuf>,
    /// METEOR 1.5's own jar (meteor-1.5.jar with its data), run by `java`.
    #[arg(long, value_name = "JAR")]
    meteor_jar: Option<PathBuf>,
    /// An encoder for BERTScore, in Hugging Face's layout.
    #[arg(long, value_name = "FOLDER")]
    bert_score: Option<PathBuf>,
    /// Which of its layers' states are compared; the last if not given.
    #[arg(long, value_name = "N", requires = "bert_score")]
    bert_score_layer: Option<usize>,
}

impl InstrumentArgs {
    /// Opens them.
    pub fn open(&self) -> Result<Instruments> {
        let bert_score = self.bert_score.as_ref().map(|folder| BertScore::open(folder, self.bert_score_layer)).transpose()?;
        let (labeller, wordnet) = (self.labeller.open()?, WordNet::find(self.wordnet.as_deref())?);
        Ok(Instruments { labeller, wordnet, meteor_jar: self.meteor_jar.clone(), bert_score })
    }
}
