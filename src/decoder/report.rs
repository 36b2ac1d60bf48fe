//! A decoder with all that stands around it: projector, prompt, tokenizer. Training and generation see both kinds alike.

use candle_core::{DType, Device, Tensor};
use ctscribe_ops::{awake, transfers};
use rand_chacha::ChaCha8Rng;

use crate::text::{PromptText, Tokenizer};
use crate::{Error, Result};

use super::bert::{BertDecoder, BertPrompt};
use super::drafts::DraftIndex;
use super::effort::Effort;
use super::greedy::write_greedily;
use super::llama::{Llama, LlamaPrompt, LlamaTexts};
use super::projector::Projector;
use super::search::{GenerationConfig, Strategy, generate};

/// A report as a decoder learns it.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetReport {
    /// Its ids, the ending one among them where it is learned.
    pub ids: Vec<u32>,
    /// How much each counts.
    pub weights: Vec<f32>,
}

/// The network.
#[derive(Debug)]
pub enum Network {
    /// LLaMA, with or without adapters.
    Llama {
        /// The model.
        model: Llama,
        /// Ids before the visual tokens.
        before: Vec<u32>,
        /// Ids after them.
        after: Vec<u32>,
    },
    /// BERT with cross-attention.
    Bert(BertDecoder),
}

/// From visual tokens to a report.
#[derive(Debug)]
pub struct ReportDecoder {
    network: Network,
    projector: Option<Projector>,
    tokenizer: Tokenizer,
    learns_end: bool,
    drafts: Option<DraftIndex>,
}

impl ReportDecoder {
    /// LLaMA behind `prompt`; `begin_and_end`: the beginning token comes first and the ending one is learned.
    pub fn llama(model: Llama, projector: Projector, tokenizer: Tokenizer, prompt: &PromptText, begin_and_end: bool) -> Result<Self> {
        let begin = begin_and_end.then_some(tokenizer.begin);
        let before = begin.into_iter().chain(tokenizer.encode(&prompt.before)?).collect();
        let after = tokenizer.encode(&prompt.after)?;
        let network = Network::Llama { model, before, after };
        Ok(ReportDecoder { network, projector: Some(projector), tokenizer, learns_end: begin_and_end, drafts: None })
    }

    /// BERT; without a projector the visual tokens are as wide as the decoder.
    pub fn bert(model: BertDecoder, projector: Option<Projector>, tokenizer: Tokenizer) -> Self {
        ReportDecoder { network: Network::Bert(model), projector, tokenizer, learns_end: true, drafts: None }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network, to attach adapters to.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// The projector.
    pub fn projector(&self) -> Option<&Projector> {
        self.projector.as_ref()
    }

    /// The projector, to give it the training tokens' statistics.
    pub fn projector_mut(&mut self) -> Option<&mut Projector> {
        self.projector.as_mut()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// A report's ids, cut to `limit`, all of weight 1; and whether anything was cut.
    pub fn target(&self, report: &str, limit: usize) -> Result<(TargetReport, bool)> {
        let mut ids = self.tokenizer.encode(report)?;
        let room = limit.saturating_sub(usize::from(self.learns_end));
        let cut = ids.len() > room;
        ids.truncate(room);
        // a report that was cut has no end to learn
        if self.learns_end && !cut {
            ids.push(self.tokenizer.end);
        }
        let weights = vec![1.0; ids.len()];
        Ok((TargetReport { ids, weights }, cut))
    }

    /// Weighted sum of the next-token losses. tokens: (B, V, h), one report a row. `dropout`: the generator of a training step.
    pub fn loss_sum(&self, tokens: &Tensor, reports: &[&TargetReport], dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let visual = self.project(tokens)?;
        match &self.network {
            Network::Llama { model, before, after } => {
                let prefix = before.len() + visual.dim(1)? + after.len();
                let Shifted { inputs, targets, weights } = shifted(reports, prefix, self.tokenizer.pad);
                let behind: Vec<Vec<u32>> = inputs.into_iter().map(|row| [after.as_slice(), &row].concat()).collect();
                let input = among_words(model, &visual, before, &behind)?;
                model.next_token_loss(&input, &targets, &weights, dropout)
            }
            Network::Bert(model) => {
                let Shifted { inputs, targets, weights } = shifted(reports, 1, self.tokenizer.pad);
                let begin = |row: Vec<u32>| [self.tokenizer.begin].into_iter().chain(row).collect();
                let inputs: Vec<Vec<u32>> = inputs.into_iter().map(begin).collect();
                let hidden = model.forward(&ids(&inputs)?, None, (&visual, None), dropout)?;
                model.loss_sum(&hidden, &targets, &weights)
            }
        }
    }

    /// An index of `reports`, as this decoder learns them, to guess from.
    pub fn draft_index(&self, reports: &[TargetReport]) -> DraftIndex {
        let without_end = |report: &'_ TargetReport| report.ids.len() - usize::from(report.ids.last() == Some(&self.tokenizer.end));
        DraftIndex::new(reports.iter().map(|report| &report.ids[..without_end(report)]))
    }

    /// Guesses come from `index`, too, not from the text being written alone.
    pub fn set_draft_index(&mut self, index: DraftIndex) {
        self.drafts = Some(index);
    }

    /// SHA-256 of the index's file.
    pub fn draft_index_sha256(&self) -> Option<&str> {
        self.drafts.as_ref()?.sha256()
    }

    /// Reports for tokens (n, V, h): their ids, and what writing them took, where LLaMA writes greedily. `on_token` hears each new id of
    /// each report.
    ///
    /// Greedy LLaMA writes the same text for a study whatever `batch` and `drafts` are.
    pub fn write(
        &self,
        tokens: &Tensor,
        config: &GenerationConfig,
        on_token: &mut (dyn FnMut(usize, u32) + Send),
    ) -> Result<(Vec<Vec<u32>>, Option<Effort>)> {
        awake(|| self.write_awake(tokens, config, on_token))
    }

    fn write_awake(
        &self,
        tokens: &Tensor,
        config: &GenerationConfig,
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<(Vec<Vec<u32>>, Option<Effort>)> {
        let config = GenerationConfig { eos: vec![self.tokenizer.end], ..config.clone() };
        match (&self.network, config.strategy) {
            (Network::Llama { model, before, after }, Strategy::Greedy) => {
                let behind = vec![after.clone(); tokens.dim(0)?];
                let prefixes = among_words(model, &self.project(tokens)?.detach(), before, &behind)?;
                let mut texts = LlamaTexts::new(model, &prefixes, config.max_new_tokens)?;
                let (reports, effort) = write_greedily(&mut texts, tokens.dim(0)?, self.drafts.as_ref(), &config, on_token)?;
                Ok((reports, Some(effort)))
            }
            _ => Ok((self.write_together(tokens, &config, on_token)?, None)),
        }
    }

    /// Reports written in step, a batch after the other: sampling, beams, BERT.
    fn write_together(&self, tokens: &Tensor, config: &GenerationConfig, on_token: &mut dyn FnMut(usize, u32)) -> Result<Vec<Vec<u32>>> {
        let alone = matches!(config.strategy, Strategy::Beam { .. });
        let batch = if alone { 1 } else { config.batch.max(1) };
        let count = tokens.dim(0)?;
        let mut reports = Vec::new();
        for start in (0..count).step_by(batch) {
            let rows = batch.min(count - start);
            let visual = self.project(&tokens.narrow(0, start, rows)?)?.detach();
            let mut heard = |row: usize, id: u32| on_token(start + row, id);
            reports.extend(match &self.network {
                Network::Llama { model, before, after } => {
                    let prefix = among_words(model, &visual, before, &vec![after.clone(); rows])?;
                    let mut prompt = LlamaPrompt::new(model, Some(prefix), rows, config.max_new_tokens)?;
                    generate(&mut prompt, &vec![vec![]; rows], config, &mut heard)?
                }
                Network::Bert(model) => {
                    let mut prompt = BertPrompt::new(model, &visual, None, config.max_new_tokens + 1)?;
                    generate(&mut prompt, &vec![vec![self.tokenizer.begin]; rows], config, &mut heard)?
                }
            });
        }
        Ok(reports)
    }

    /// Where the decoder lies.
    pub fn device(&self) -> &Device {
        match &self.network {
            Network::Llama { model, .. } => model.device(),
            Network::Bert(model) => model.device(),
        }
    }

    /// tokens: (B, V, h) in the host's memory -> (B, V, hidden), f32, on the decoder's device with one upload.
    fn project(&self, tokens: &Tensor) -> Result<Tensor> {
        let tokens = transfers::to_device(tokens, self.device())?.to_dtype(DType::F32)?;
        match &self.projector {
            Some(projector) => projector.forward(&tokens),
            None => Ok(tokens),
        }
    }
}

/// visual: (B, V, D) between the words `before` it and those `behind` it, a row a sequence: (B, P, D) of the model's type. One look-up for
/// all words.
fn among_words(model: &Llama, visual: &Tensor, before: &[u32], behind: &[Vec<u32>]) -> Result<Tensor> {
    let visual = visual.to_dtype(model.dtype())?;
    let words: Vec<Vec<u32>> = behind.iter().map(|behind| [before, behind].concat()).collect();
    let (first, count) = (before.len(), words.first().map_or(0, Vec::len));
    if count == 0 {
        return Ok(visual);
    }
    let words = model.embed(&ids(&words)?)?;
    let mut parts = vec![visual];
    if first > 0 {
        parts.insert(0, words.narrow(1, 0, first)?);
    }
    if count > first {
        parts.push(words.narrow(1, first, count - first)?);
    }
    Ok(Tensor::cat(&parts, 1)?)
}

/// What a batch of reports feeds a decoder and what should come out, a row a report.
struct Shifted {
    inputs: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
    weights: Vec<Vec<f32>>,
}

/// Inputs, targets and weights of reports behind a prefix of `prefix` positions: the prefix's last position gives the first id.
fn shifted(reports: &[&TargetReport], prefix: usize, pad: u32) -> Shifted {
    let longest = reports.iter().map(|report| report.ids.len()).max().unwrap_or(0);
    let input = |report: &&TargetReport| (0..longest.saturating_sub(1)).map(|at| report.ids.get(at).copied().unwrap_or(pad)).collect();
    let behind = |at: usize| (at + 1).checked_sub(prefix);
    let length = (prefix + longest).saturating_sub(1);
    let target = |report: &&TargetReport| -> Vec<u32> {
        (0..length).map(|at| behind(at).and_then(|at| report.ids.get(at)).copied().unwrap_or(pad)).collect()
    };
    let weight = |report: &&TargetReport| -> Vec<f32> {
        (0..length).map(|at| behind(at).and_then(|at| report.weights.get(at)).copied().unwrap_or(0.0)).collect()
    };
    Shifted {
        inputs: reports.iter().map(input).collect(),
        targets: reports.iter().map(target).collect(),
        weights: reports.iter().map(weight).collect(),
    }
}

/// Rows of ids as a tensor of the host's.
fn ids(rows: &[Vec<u32>]) -> Result<Tensor> {
    let length = rows.first().map_or(0, Vec::len);
    if rows.iter().any(|row| row.len() != length) {
        return Err(Error::Invalid("rows of ids are of different lengths".to_string()));
    }
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), length), &Device::Cpu)?)
}

/// Weights of tokens by how rare they are among `reports`: 1 for one that every report has, up to `most` for the rarest (phantom.md).
pub fn weigh_rare_tokens(reports: &mut [TargetReport], vocabulary: usize, most: f64) {
    if most <= 1.0 {
        return;
    }
    let mut having = vec![0usize; vocabulary];
    for report in reports.iter() {
        let mut seen = report.ids.clone();
        seen.sort_unstable();
        seen.dedup();
        seen.iter().for_each(|id| having[*id as usize] += 1);
    }
    let count = reports.len() as f64;
    // an idf of 4 (a token of one report in 55) and more is full rarity
    let weight = |id: &u32| (1.0 + (most - 1.0) * ((count / having[*id as usize].max(1) as f64).ln().min(4.0) / 4.0)) as f32;
    for report in reports {
        report.weights = report.ids.iter().map(weight).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ids: &[u32]) -> TargetReport {
        TargetReport { ids: ids.to_vec(), weights: vec![1.0; ids.len()] }
    }

    #[test]
    fn the_last_position_of_the_prefix_gives_the_first_id_and_padding_does_not_count() {
        let (long, short) = (report(&[7, 8, 2]), report(&[9, 2]));
        let Shifted { inputs, targets, weights } = shifted(&[&long, &short], 3, 0);
        // the ending id is fed where a longer report goes on; nothing is learned there
        assert_eq!(inputs, [[7, 8], [9, 2]]);
        assert_eq!(targets, [[0, 0, 7, 8, 2], [0, 0, 9, 2, 0]]);
        assert_eq!(weights, [[0.0, 0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0, 0.0]]);
    }

    #[test]
    fn a_token_of_every_report_counts_once_and_a_rare_one_more() {
        let mut reports: Vec<TargetReport> = (0..100).map(|n| report(if n == 0 { &[1, 3] } else { &[1, 2] })).collect();
        weigh_rare_tokens(&mut reports, 4, 4.0);
        assert_eq!(reports[0].weights, [1.0, 4.0]);
        assert!(reports[1].weights[1] > 1.0 && reports[1].weights[1] < 1.1);
    }
}
