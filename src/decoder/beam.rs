//! Beam search, by Hugging Face's rules (early stopping off).

use crate::Result;

use super::processors::{log_softmax, process};
use super::search::{GenerationConfig, rows};
use super::step::NextToken;

#[derive(Debug, Clone)]
struct Hypothesis {
    ids: Vec<u32>,
    score: f64,
}

/// The best continuation of `first` with `width` beams; the ending id is left out.
pub fn search(
    decoder: &mut dyn NextToken,
    first: &[u32],
    width: usize,
    length_penalty: f64,
    config: &GenerationConfig,
) -> Result<Vec<u32>> {
    let mut beams = vec![Hypothesis { ids: Vec::new(), score: 0.0 }];
    let mut finished: Vec<Hypothesis> = Vec::new();
    let mut logits = rows(&decoder.next(&[first.to_vec()])?)?;
    for step in 0..config.max_new_tokens {
        let (next, order) = extend(&beams, &mut logits, first, step, width, config, &mut |hypothesis| {
            finish(&mut finished, hypothesis, length_penalty, width);
        });
        beams = next;
        let best_running = beams.iter().map(|beam| beam.score).fold(f64::NEG_INFINITY, f64::max);
        let worst_kept = finished.iter().map(|hypothesis| hypothesis.score).fold(f64::INFINITY, f64::min);
        let done = finished.len() >= width && worst_kept >= best_running / ((step + 1) as f64).powf(length_penalty);
        if done || beams.is_empty() || step + 1 == config.max_new_tokens {
            break;
        }
        decoder.reorder(&order)?;
        let ids: Vec<Vec<u32>> = beams.iter().map(|beam| beam.ids[beam.ids.len() - 1..].to_vec()).collect();
        logits = rows(&decoder.next(&ids)?)?;
    }
    for beam in beams {
        finish(&mut finished, beam, length_penalty, width);
    }
    let best = finished.into_iter().reduce(|best, other| if other.score > best.score { other } else { best });
    Ok(best.map(|hypothesis| hypothesis.ids).unwrap_or_default())
}

/// The `width` best continuations that do not end, with the beams they come from; those that end go to `ended`.
fn extend(
    beams: &[Hypothesis],
    logits: &mut [Vec<f32>],
    first: &[u32],
    step: usize,
    width: usize,
    config: &GenerationConfig,
    ended: &mut dyn FnMut(Hypothesis),
) -> (Vec<Hypothesis>, Vec<usize>) {
    let mut candidates: Vec<(f64, usize, u32)> = Vec::new();
    for (index, (beam, logits)) in beams.iter().zip(logits).enumerate() {
        let mut scores = log_softmax(logits);
        let history: Vec<u32> = first.iter().chain(&beam.ids).copied().collect();
        process(&mut scores, &history, step, config);
        let with_beam = scores.iter().enumerate().map(|(id, score)| (beam.score + f64::from(*score), index, id as u32));
        candidates.extend(with_beam.filter(|(score, _, _)| score.is_finite()));
    }
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let (mut next, mut order) = (Vec::new(), Vec::new());
    // twice the width and one for each ending id, so that enough do not end
    for (rank, (score, index, id)) in candidates.into_iter().take(width * (1 + config.eos.len()).max(2)).enumerate() {
        if config.eos.contains(&id) {
            if rank < width {
                ended(Hypothesis { ids: beams[index].ids.clone(), score });
            }
        } else if next.len() < width {
            let ids = beams[index].ids.iter().copied().chain([id]).collect();
            next.push(Hypothesis { ids, score });
            order.push(index);
        }
    }
    (next, order)
}

/// Keeps the `width` best by score over length to the penalty's power; the ending id counts in the length.
fn finish(finished: &mut Vec<Hypothesis>, hypothesis: Hypothesis, length_penalty: f64, width: usize) {
    let length = (hypothesis.ids.len() + 1) as f64;
    finished.push(Hypothesis { score: hypothesis.score / length.powf(length_penalty), ..hypothesis });
    finished.sort_by(|a, b| b.score.total_cmp(&a.score));
    finished.truncate(width);
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::super::search::{Strategy, generate};
    use super::*;

    /// A chain over four ids whose next-token probabilities depend on the last id only; id 3 ends.
    struct Chain {
        last: Vec<u32>,
    }

    impl NextToken for Chain {
        fn next(&mut self, ids: &[Vec<u32>]) -> Result<Tensor> {
            self.last = ids.iter().map(|row| *row.last().unwrap()).collect();
            // greedy takes 1 (0.6) and then has only weak ways on; 2 (0.4) is followed by a sure end
            let table = [[0.0f32, 0.6, 0.4, 0.0], [0.0, 0.35, 0.3, 0.35], [0.0, 0.0, 0.0, 1.0], [0.25; 4]];
            let logits: Vec<f32> = self.last.iter().flat_map(|id| table[*id as usize].map(|p| (p + 1e-6).ln())).collect();
            Ok(Tensor::from_vec(logits, (self.last.len(), 4), &Device::Cpu)?)
        }

        fn reorder(&mut self, order: &[usize]) -> Result<()> {
            self.last = order.iter().map(|&index| self.last[index]).collect();
            Ok(())
        }
    }

    fn config(strategy: Strategy) -> GenerationConfig {
        GenerationConfig {
            strategy,
            max_new_tokens: 4,
            min_new_tokens: 0,
            repetition_penalty: 1.0,
            no_repeat_ngram: 0,
            eos: vec![3],
            batch: 1,
            drafts: 0,
            seed: 1,
        }
    }

    fn run(strategy: Strategy) -> Vec<u32> {
        generate(&mut Chain { last: vec![] }, &[vec![0]], &config(strategy), &mut |_, _| {}).unwrap().remove(0)
    }

    #[test]
    fn one_beam_is_greedy_and_two_find_the_likelier_sentence() {
        let beam = |width| Strategy::Beam { width, length_penalty: 0.0 };
        assert_eq!(run(Strategy::Greedy), run(beam(1)));
        assert_eq!(run(beam(2)), [2]);
    }

    #[test]
    fn sampling_is_reproduced_by_its_seed() {
        let sample = Strategy::Sample { temperature: 1.0, top_k: None, top_p: 1.0 };
        assert_eq!(run(sample), run(sample));
    }

    #[test]
    fn nothing_ends_before_the_minimum_length() {
        let config = GenerationConfig { min_new_tokens: 3, ..config(Strategy::Greedy) };
        let ids = generate(&mut Chain { last: vec![] }, &[vec![2]], &config, &mut |_, _| {}).unwrap();
        assert!(ids[0].len() >= 3);
    }
}
