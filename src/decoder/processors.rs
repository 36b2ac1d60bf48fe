//! What is done to logits before a token is chosen, in Hugging Face's order and by its definitions.

use std::collections::HashSet;

use super::search::GenerationConfig;

/// Repetition penalty, no-repeat n-grams, minimum length. `history`: all ids so far, `generated`: how many of them are new.
pub fn process(logits: &mut [f32], history: &[u32], generated: usize, config: &GenerationConfig) {
    if config.repetition_penalty != 1.0 {
        penalise_repetition(logits, history, config.repetition_penalty as f32);
    }
    if config.no_repeat_ngram > 0 {
        for id in repeating(history, config.no_repeat_ngram) {
            logits[id as usize] = f32::NEG_INFINITY;
        }
    }
    if generated < config.min_new_tokens {
        for id in &config.eos {
            logits[*id as usize] = f32::NEG_INFINITY;
        }
    }
}

/// Logits of ids seen before: divided by the penalty if positive, else multiplied (Keskar et al., 2019).
fn penalise_repetition(logits: &mut [f32], history: &[u32], penalty: f32) {
    let seen: HashSet<u32> = history.iter().copied().collect();
    for id in seen {
        let logit = &mut logits[id as usize];
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
    }
}

/// Ids that would complete an n-gram that `history` holds already.
fn repeating(history: &[u32], n: usize) -> Vec<u32> {
    if history.len() + 1 < n {
        return Vec::new();
    }
    let tail = &history[history.len() + 1 - n..];
    history.windows(n).filter(|window| window[..n - 1] == *tail).map(|window| window[n - 1]).collect()
}

/// Softmax probabilities after temperature, top-k and top-p, as Hugging Face's warpers; ids by falling probability.
pub fn warp(logits: &[f32], temperature: f64, top_k: Option<usize>, top_p: f64) -> Vec<(u32, f32)> {
    let mut order: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, logit)| (id as u32, logit / temperature as f32)).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(top_k.unwrap_or(usize::MAX).max(1));
    let largest = order[0].1;
    order.iter_mut().for_each(|(_, logit)| *logit = (*logit - largest).exp());
    normalise(&mut order);
    let mut mass = 0.0;
    // the token that crosses top_p stays
    let kept = order
        .iter()
        .take_while(|(_, p)| {
            let before = mass;
            mass += f64::from(*p);
            before < top_p
        })
        .count();
    order.truncate(kept.max(1));
    normalise(&mut order);
    order
}

fn normalise(order: &mut [(u32, f32)]) {
    let total: f32 = order.iter().map(|(_, p)| p).sum();
    order.iter_mut().for_each(|(_, p)| *p /= total);
}

/// log softmax.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum::<f64>().ln() as f32;
    logits.iter().map(|logit| logit - largest - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seen_id_is_penalised_toward_less_likely_whatever_its_sign() {
        let mut logits = [2.0, -2.0, 2.0];
        penalise_repetition(&mut logits, &[0, 1, 1], 2.0);
        assert_eq!(logits, [1.0, -4.0, 2.0]);
    }

    #[test]
    fn an_id_that_would_repeat_an_n_gram_is_found() {
        assert_eq!(repeating(&[5, 6, 7, 5, 6], 3), [7]);
        assert_eq!(repeating(&[5, 6, 7, 5, 6], 1), [5, 6, 7, 5, 6]);
        assert!(repeating(&[5], 3).is_empty());
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_it() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        assert_eq!(warp(&logits, 1.0, None, 0.6).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(warp(&logits, 1.0, Some(1), 1.0), [(0, 1.0)]);
    }
}
