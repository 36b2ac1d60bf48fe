//! What comes next in one text.

use std::collections::BTreeMap;

use super::index::{BETWEEN, DEPTH, DraftIndex, Places};

/// A likely next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// Its id.
    pub id: u32,
    /// How likely it is held to be, up to 1.
    pub share: f64,
}

/// A text as far as it is written, with the places of the index where its last tokens occur.
#[derive(Debug, Clone)]
pub struct TextSoFar<'a> {
    index: Option<&'a DraftIndex>,
    /// Places of the last tokens, of ever fewer of them: the longest run first.
    places: Vec<Places>,
    ids: Vec<u32>,
}

/// Share of a guess that shorter runs can no longer change much.
const SETTLED: f64 = 0.02;

/// Tokens of the text itself that must agree with its last ones before it is taken as an example.
const OWN_AGREEMENT: usize = 2;

impl<'a> TextSoFar<'a> {
    /// An empty text.
    pub fn new(index: Option<&'a DraftIndex>) -> Self {
        let mut text = TextSoFar { index, places: Vec::new(), ids: Vec::new() };
        text.follow(BETWEEN);
        text
    }

    /// Its ids.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Its ids, taken out.
    pub fn into_ids(self) -> Vec<u32> {
        self.ids
    }

    /// `id` is written.
    pub fn push(&mut self, id: u32) {
        self.ids.push(id);
        self.follow(id);
    }

    fn follow(&mut self, id: u32) {
        let Some(index) = self.index else { return };
        self.places.push(index.everywhere());
        // no run longer than the index tells apart, and room for the token behind it
        self.places = self.places.iter().filter(|places| places.depth + 1 < DEPTH).map(|places| index.narrow(*places, id)).collect();
        self.places.retain(|places| places.count() > 0);
    }

    /// The likeliest next token; none where nothing like the text is known, or it is likeliest to end.
    ///
    /// Shares are counted behind the longest run of last tokens that is known and blended with those behind ever shorter ones, which
    /// weigh as much as new tokens were frequent behind the longer (A. Moffat, "Implementing the PPM data compression scheme", 1990, method C).
    pub fn guess(&self) -> Option<Guess> {
        let (mut shares, mut left) = (BTreeMap::new(), 1.0);
        let mut own = self.own_example();
        for places in &self.places {
            if own.is_some_and(|(depth, _)| depth >= places.depth) {
                blend(&mut shares, &mut left, own.take().map(|(_, id)| (id, 1)).as_slice());
            }
            if left < SETTLED {
                break;
            }
            blend(&mut shares, &mut left, &self.index?.next(*places));
        }
        blend(&mut shares, &mut left, own.map(|(_, id)| (id, 1)).as_slice());
        let best = shares.into_iter().reduce(|best, other| if other.1 > best.1 { other } else { best });
        best.filter(|(id, _)| *id != BETWEEN).map(|(id, share)| Guess { id, share })
    }

    /// The longest earlier run of the text's own tokens that equals its last ones, the latest of several: its length, and the token behind it.
    fn own_example(&self) -> Option<(usize, u32)> {
        let ids = &self.ids;
        let agreement = |end: usize| ids[..end].iter().rev().zip(ids.iter().rev()).take(DEPTH).take_while(|(a, b)| a == b).count();
        let longest = (1..ids.len()).map(|end| (agreement(end), end)).max()?;
        (longest.0 >= OWN_AGREEMENT).then(|| (longest.0, ids[longest.1]))
    }
}

/// Adds the shares of counted tokens to `shares`, of which `left` is not given yet.
fn blend(shares: &mut BTreeMap<u32, f64>, left: &mut f64, counted: &[(u32, usize)]) {
    let total: usize = counted.iter().map(|(_, count)| count).sum();
    if total == 0 {
        return;
    }
    let whole = (total + counted.len()) as f64;
    for (id, count) in counted {
        *shares.entry(*id).or_insert(0.0) += *left * *count as f64 / whole;
    }
    *left *= counted.len() as f64 / whole;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(index: Option<&'a DraftIndex>, ids: &[u32]) -> TextSoFar<'a> {
        let mut text = TextSoFar::new(index);
        ids.iter().for_each(|id| text.push(*id));
        text
    }

    #[test]
    fn the_longest_known_run_decides_and_shorter_ones_lend_their_share() {
        let reports: [&[u32]; 4] = [&[1, 2, 3], &[1, 2, 3], &[9, 2, 4], &[8, 2, 4]];
        let index = DraftIndex::new(reports.into_iter());
        assert_eq!(text(Some(&index), &[1, 2]).guess().unwrap().id, 3);
        assert_eq!(text(Some(&index), &[9, 2]).guess().unwrap().id, 4);
        // behind the start of a report: 1 twice of 4, three ids seen, then all that is known behind nothing
        assert_eq!(text(Some(&index), &[]).guess().unwrap().id, 1);
        // (start, 1, 2) has 3 twice of 2: 2/3; so has (1, 2) of the third left: 2/9; (2) has it twice of 4, two ids seen: 1/27 of 1/9 times 3
        let share = text(Some(&index), &[1, 2]).guess().unwrap().share;
        assert!((share - (2.0 / 3.0 + 2.0 / 9.0 + 1.0 / 9.0 * 2.0 / 6.0)).abs() < 1e-12, "{share}");
    }

    #[test]
    fn a_text_is_its_own_example_where_no_report_is_known() {
        assert_eq!(text(None, &[4, 5, 6, 7, 4, 5]).guess(), Some(Guess { id: 6, share: 0.5 }));
        assert_eq!(text(None, &[4, 5, 6, 7, 5]).guess(), None);
    }

    #[test]
    fn nothing_is_guessed_behind_a_report_that_is_likeliest_to_end() {
        let reports: [&[u32]; 2] = [&[1, 2, 3], &[1, 2, 3]];
        let index = DraftIndex::new(reports.into_iter());
        assert_eq!(text(Some(&index), &[1, 2, 3]).guess(), None);
        assert_eq!(text(Some(&index), &[7]).guess(), None);
    }
}
