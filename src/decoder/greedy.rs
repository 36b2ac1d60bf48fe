//! Greedy decoding of several texts, each with its own past, a few tokens of each in one pass: the next one and those guessed behind it.
//!
//! A guess is kept where decoding chooses the same token, after all that is done to logits; what was read behind the first other one is
//! forgotten. So the text is that of decoding token by token, as long as a pass gives each row the bits that it has alone: it has at
//! most [`FEW_ROWS`] rows (Y. Leviathan et al., "Fast inference from transformers via speculative decoding", 2023, with greedy choices).

use ctscribe_ops::FEW_ROWS;

use crate::Result;

use super::drafts::{DraftIndex, Guess, TextSoFar};
use super::effort::Effort;
use super::processors::process;
use super::search::{GenerationConfig, argmax};

/// A decoder that reads texts, each at its own place, a few ids of each in one pass.
pub trait ReadRows {
    /// Reads what `text` begins with; the logits of its first id.
    fn begin(&mut self, text: usize) -> Result<Vec<f32>>;

    /// Reads the next ids of texts, at most [`FEW_ROWS`] in all; the logits behind each of them, in their order.
    fn read(&mut self, runs: &[(usize, Vec<u32>)]) -> Result<Vec<Vec<f32>>>;

    /// Ids that `text` can still take.
    fn room(&self, text: usize) -> usize;

    /// Forgets the last `count` ids of `text`.
    fn forget(&mut self, text: usize, count: usize);

    /// `text` is written.
    fn end(&mut self, text: usize);
}

/// What a further row is taken to cost beside a pass of one: less where a pass waits for memory, as large models do, more where it does
/// not (the phantoms' model: measured, an eighth). It decides how many guesses are worth reading, never what is written.
const ROW_COST: f64 = 0.15;

struct Text<'a> {
    number: usize,
    so_far: TextSoFar<'a>,
    ended: bool,
}

impl Text<'_> {
    /// Takes the likeliest token after all that is done to the logits.
    fn choose(&mut self, logits: &mut [f32], config: &GenerationConfig, on_token: &mut dyn FnMut(usize, u32)) -> u32 {
        let ids = self.so_far.ids();
        process(logits, ids, ids.len(), config);
        let id = argmax(logits);
        self.ended = config.eos.contains(&id);
        if !self.ended {
            self.so_far.push(id);
            on_token(self.number, id);
            self.ended = self.so_far.ids().len() >= config.max_new_tokens;
        }
        id
    }
}

/// Writes `count` texts, `config.batch` at a time (at most [`FEW_ROWS`]); when one ends, the next takes its place. `on_token` hears each
/// new id of each text as it comes. The new ids of each, ending ones left out, and what it took.
pub fn write_greedily(
    decoder: &mut dyn ReadRows,
    count: usize,
    index: Option<&DraftIndex>,
    config: &GenerationConfig,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<(Vec<Vec<u32>>, Effort)> {
    let (mut written, mut effort, mut waiting) = (vec![Vec::new(); count], Effort::default(), 0..count);
    let index = index.filter(|_| config.drafts > 0);
    let mut texts: Vec<Text> = Vec::new();
    loop {
        while texts.len() < config.batch.clamp(1, FEW_ROWS) {
            let Some(number) = waiting.next() else { break };
            let mut text = Text { number, so_far: TextSoFar::new(index), ended: false };
            text.choose(&mut decoder.begin(number)?, config, on_token);
            (effort.passes, effort.tokens) = (effort.passes + 1, effort.tokens + 1);
            texts.push(text);
        }
        for text in texts.extract_if(.., |text| text.ended) {
            decoder.end(text.number);
            written[text.number] = text.so_far.into_ids();
        }
        match texts.is_empty() {
            true if waiting.is_empty() => return Ok((written, effort)),
            true => {}
            false => effort = effort.and(pass(decoder, &mut texts, config, on_token)?),
        }
    }
}

/// One pass: each text goes on by a token at least.
fn pass(decoder: &mut dyn ReadRows, texts: &mut [Text], config: &GenerationConfig, on_token: &mut dyn FnMut(usize, u32)) -> Result<Effort> {
    let runs = runs(decoder, texts, config);
    let mut logits = decoder.read(&runs)?.into_iter();
    let mut effort = Effort { passes: 1, ..Effort::default() };
    for (text, (number, run)) in texts.iter_mut().zip(&runs) {
        let mut own = logits.by_ref().take(run.len()).collect::<Vec<_>>();
        effort.drafted += run.len() - 1;
        for (at, logits) in own.iter_mut().enumerate() {
            let id = text.choose(logits, config, on_token);
            effort.tokens += 1;
            let agrees = run.get(at + 1) == Some(&id);
            effort.accepted += usize::from(agrees);
            if text.ended || !agrees {
                decoder.forget(*number, run.len() - 1 - at);
                break;
            }
        }
    }
    Ok(effort)
}

/// What one text may read in a pass: its last token, and guesses behind it.
struct Draft<'a> {
    run: Vec<u32>,
    most: usize,
    so_far: TextSoFar<'a>,
    /// How likely all of the run is held to be chosen.
    share: f64,
    next: Option<Guess>,
}

impl<'a> Draft<'a> {
    /// The last token of `text`, with at most `most` rows.
    fn new(text: &Text<'a>, most: usize) -> Self {
        let last = text.so_far.ids().last().copied();
        let mut draft = Draft { run: last.into_iter().collect(), most, so_far: text.so_far.clone(), share: 1.0, next: None };
        draft.look_ahead();
        draft
    }

    fn look_ahead(&mut self) {
        self.next = if self.run.len() < self.most { self.so_far.guess() } else { None };
    }

    /// How likely the next guess and all before it are held to be chosen.
    fn next_share(&self) -> f64 {
        self.next.map_or(0.0, |next| self.share * next.share)
    }

    fn take(&mut self) {
        self.share = self.next_share();
        if let Some(next) = self.next {
            self.run.push(next.id);
            self.so_far.push(next.id);
        }
        self.look_ahead();
    }
}

/// The last token of each text, and the likeliest guesses behind them while one is worth its row: while it adds more to the tokens
/// expected of the pass than the pass has yet for its cost.
fn runs(decoder: &dyn ReadRows, texts: &[Text], config: &GenerationConfig) -> Vec<(usize, Vec<u32>)> {
    let most = |text: &Text| (1 + config.drafts).min(config.max_new_tokens - text.so_far.ids().len()).min(decoder.room(text.number));
    let mut drafts: Vec<Draft> = texts.iter().map(|text| Draft::new(text, most(text))).collect();
    let mut expected = drafts.len() as f64;
    for rows in drafts.len()..FEW_ROWS {
        let best = drafts.iter_mut().reduce(|best, other| if other.next_share() > best.next_share() { other } else { best });
        let Some(best) = best else { break };
        let share = best.next_share();
        if share <= ROW_COST * expected / (1.0 + ROW_COST * (rows - 1) as f64) {
            break;
        }
        expected += share;
        best.take();
    }
    texts.iter().zip(drafts).map(|(text, draft)| (text.number, draft.run)).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::search::{Strategy, generate};
    use super::super::step::NextToken;
    use super::*;

    const WORDS: usize = 23;
    const END: u32 = 0;

    /// A language whose next token depends on the last two and a little on the text's number: logits of all tokens.
    fn logits(text: usize, ids: &[u32]) -> Vec<f32> {
        let last = |back: usize| ids.len().checked_sub(back).map_or(7, |at| u64::from(ids[at]));
        let mut rng = ChaCha8Rng::seed_from_u64(last(1) * 100 + last(2));
        let mut own = ChaCha8Rng::seed_from_u64((text * 1000 + ids.len()) as u64);
        (0..WORDS).map(|_| rng.random_range(-3.0..3.0f32) + own.random_range(-0.4..0.4f32)).collect()
    }

    /// What has been read of each text; reading more than a pass may hold, or a text that is not begun, is a fault.
    struct Language {
        read: Vec<Option<Vec<u32>>>,
    }

    impl ReadRows for Language {
        fn begin(&mut self, text: usize) -> Result<Vec<f32>> {
            self.read[text] = Some(Vec::new());
            Ok(logits(text, &[]))
        }

        fn read(&mut self, runs: &[(usize, Vec<u32>)]) -> Result<Vec<Vec<f32>>> {
            assert!(runs.iter().map(|(_, run)| run.len()).sum::<usize>() <= FEW_ROWS);
            let mut rows = Vec::new();
            for (text, run) in runs {
                let read = self.read[*text].as_mut().unwrap();
                for id in run {
                    read.push(*id);
                    rows.push(logits(*text, read));
                }
            }
            Ok(rows)
        }

        fn room(&self, text: usize) -> usize {
            60 - self.read[text].as_ref().unwrap().len()
        }

        fn forget(&mut self, text: usize, count: usize) {
            let read = self.read[text].as_mut().unwrap();
            read.truncate(read.len() - count);
        }

        fn end(&mut self, text: usize) {
            assert!(self.read[text].take().is_some());
        }
    }

    /// The same language, token by token.
    struct Alone(usize, Vec<u32>);

    impl NextToken for Alone {
        fn next(&mut self, ids: &[Vec<u32>]) -> Result<Tensor> {
            self.1.extend(&ids[0]);
            Ok(Tensor::from_vec(logits(self.0, &self.1), (1, WORDS), &Device::Cpu)?)
        }

        fn reorder(&mut self, _: &[usize]) -> Result<()> {
            Ok(())
        }
    }

    const TEXTS: usize = 40;

    fn config(drafts: usize, batch: usize) -> GenerationConfig {
        GenerationConfig {
            strategy: Strategy::Greedy,
            max_new_tokens: 50,
            min_new_tokens: 5,
            repetition_penalty: 1.0,
            no_repeat_ngram: 0,
            eos: vec![END],
            batch,
            drafts,
            seed: 0,
        }
    }

    fn alone(config: &GenerationConfig) -> Vec<Vec<u32>> {
        let text = |number: usize| generate(&mut Alone(number, Vec::new()), &[vec![]], config, &mut |_, _| {}).unwrap().remove(0);
        (0..TEXTS).map(text).collect()
    }

    fn ahead(config: &GenerationConfig, index: Option<&DraftIndex>) -> (Vec<Vec<u32>>, Effort) {
        let mut heard = vec![Vec::new(); TEXTS];
        let mut language = Language { read: vec![None; TEXTS] };
        let written = write_greedily(&mut language, TEXTS, index, config, &mut |text, id| heard[text].push(id)).unwrap();
        assert_eq!(heard, written.0, "what was heard is not what was written");
        assert!(language.read.iter().all(Option::is_none), "a text was not ended");
        written
    }

    #[test]
    fn guesses_and_batches_change_no_text_whatever_is_done_to_logits() {
        let plain = config(0, 1);
        let processed = [
            plain.clone(),
            GenerationConfig { repetition_penalty: 1.3, ..plain.clone() },
            GenerationConfig { no_repeat_ngram: 3, ..plain.clone() },
            GenerationConfig { min_new_tokens: 30, no_repeat_ngram: 2, repetition_penalty: 0.9, ..plain.clone() },
            GenerationConfig { max_new_tokens: 1, min_new_tokens: 0, ..plain.clone() },
            GenerationConfig { max_new_tokens: 9, eos: vec![], ..plain.clone() },
        ];
        for own in processed {
            let expected = alone(&own);
            // a good index, one of other texts, none
            let good = DraftIndex::new(expected.iter().map(Vec::as_slice));
            let strange = DraftIndex::new(expected.iter().map(|ids| &ids[..ids.len() / 3]));
            for index in [Some(&good), Some(&strange), None] {
                for (drafts, batch) in [(0, 1), (0, 32), (1, 1), (3, 2), (7, 1), (7, 4), (7, 32)] {
                    let (found, effort) = ahead(&GenerationConfig { drafts, batch, ..own.clone() }, index);
                    assert_eq!(found, expected, "{own:?} {drafts} {batch}");
                    assert!(effort.accepted <= effort.drafted && (drafts > 0 || effort.drafted == 0));
                }
            }
        }
    }

    #[test]
    fn known_texts_take_a_fraction_of_the_passes_and_unknown_ones_no_more_than_before() {
        let expected = alone(&config(0, 1));
        let index = DraftIndex::new(expected.iter().map(Vec::as_slice));
        let (plain, known, unknown) = (ahead(&config(0, 1), None).1, ahead(&config(7, 1), Some(&index)).1, ahead(&config(7, 1), None).1);
        assert_eq!(plain.passes, plain.tokens);
        assert_eq!((known.tokens, unknown.tokens), (plain.tokens, plain.tokens));
        assert!(known.passes * 2 < plain.passes, "{known:?} {plain:?}");
        assert!(unknown.passes <= plain.passes, "{unknown:?} {plain:?}");
        assert_eq!(known.passes + known.accepted, known.tokens, "a pass gives a token, an accepted guess another");
    }

    #[test]
    fn a_text_is_not_read_past_its_room() {
        // 60 ids are read at most, 70 would be written: as token by token, which is refused by the decoder itself
        let own = GenerationConfig { max_new_tokens: 60, eos: vec![], ..config(7, 3) };
        let expected = alone(&own);
        let index = DraftIndex::new(expected.iter().map(Vec::as_slice));
        assert_eq!(ahead(&own, Some(&index)).0, expected);
    }
}
