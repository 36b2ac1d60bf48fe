//! Tokenizers: WordPiece and byte-pair, read, learned and written.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, decoders};

use crate::{Error, Result};

/// A tokenizer with the ids that begin and end a text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `[CLS]` or `<s>`.
    pub begin: u32,
    /// `[SEP]` or `</s>`.
    pub end: u32,
    /// `[PAD]`, `<pad>` or `<unk>`.
    pub pad: u32,
}

/// Names of the beginning, ending and padding tokens by family.
const FAMILIES: [[&str; 3]; 3] = [["[CLS]", "[SEP]", "[PAD]"], ["<s>", "</s>", "<pad>"], ["<s>", "</s>", "<unk>"]];

impl Tokenizer {
    /// Reads `tokenizer.json`, RoBERTa's `vocab.json` with `merges.txt` beside it, or WordPiece's `vocab.txt`, in `folder` (or that file itself).
    pub fn read(path: &Path) -> Result<Self> {
        let names = ["tokenizer.json", "vocab.json", "vocab.txt"];
        let candidates = if path.is_dir() { names.map(|name| path.join(name)).to_vec() } else { vec![path.to_path_buf()] };
        let file = candidates.iter().find(|file| file.is_file());
        let file = file.ok_or_else(|| Error::file(path, "holds neither tokenizer.json nor vocab.json nor vocab.txt"))?;
        if file.file_name().is_some_and(|name| name == "vocab.json") {
            return Tokenizer::byte_pair(file);
        }
        if file.extension().is_some_and(|extension| extension == "txt") {
            return Tokenizer::wordpiece(file);
        }
        let inner = tokenizers::Tokenizer::from_file(file).map_err(|e| Error::file(file, format!("not a tokenizer: {e}")))?;
        Tokenizer::of(inner, file)
    }

    /// BERT's lower-casing WordPiece with this vocabulary, one token a line.
    fn wordpiece(file: &Path) -> Result<Self> {
        let model = WordPiece::builder().files(file.display().to_string()).unk_token("[UNK]".to_string()).build();
        let model = model.map_err(|e| Error::file(file, format!("not a WordPiece vocabulary: {e}")))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(Some(BertNormalizer::default())).map_err(|e| Error::file(file, e.to_string()))?;
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(|token| AddedToken::from(token, true));
        inner.add_special_tokens(special).map_err(|e| Error::file(file, e.to_string()))?;
        Tokenizer::of(inner, file)
    }

    /// RoBERTa's byte-level pairs: ids in `vocab`, merges in `merges.txt` beside it.
    fn byte_pair(vocab: &Path) -> Result<Self> {
        let merges = vocab.with_file_name("merges.txt");
        let [ids, pairs] = [vocab, merges.as_path()].map(|path| path.display().to_string());
        let model = BPE::from_file(&ids, &pairs).unk_token("<unk>".to_string()).build();
        let model = model.map_err(|e| Error::file(vocab, format!("not a byte-pair vocabulary with merges.txt beside it: {e}")))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner.with_decoder(Some(ByteLevel::default()));
        let special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"].map(|token| AddedToken::from(token, true));
        inner.add_special_tokens(special).map_err(|e| Error::file(vocab, e.to_string()))?;
        Tokenizer::of(inner, vocab)
    }

    /// A byte-pair tokenizer learned from `texts`: `<unk>` 0, `<s>` 1, `</s>` 2, then bytes and merges; any text round-trips.
    pub fn train_byte_pair(texts: &[String], vocabulary: usize) -> Result<Self> {
        let fault = |e: tokenizers::Error| Error::Invalid(format!("the tokenizer could not be learned: {e}"));
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner.with_decoder(Some(ByteLevel::default()));
        let special = ["<unk>", "<s>", "</s>"].map(|token| AddedToken::from(token, true)).to_vec();
        let trainer = BpeTrainer::builder().vocab_size(vocabulary).show_progress(false).special_tokens(special);
        let mut trainer: tokenizers::models::TrainerWrapper =
            trainer.initial_alphabet(ByteLevel::alphabet().into_iter().collect()).build().into();
        inner.train(&mut trainer, texts.iter()).map_err(fault)?;
        Tokenizer::of(inner, Path::new("the learned tokenizer"))
    }

    fn of(mut inner: tokenizers::Tokenizer, file: &Path) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(file, e.to_string()))?;
        let ids = FAMILIES.iter().find_map(|names| {
            let [begin, end, pad] = names.map(|name| inner.token_to_id(name));
            Some((begin?, end?, pad?))
        });
        let (begin, end, pad) = ids.ok_or_else(|| Error::file(file, "has neither [CLS], [SEP], [PAD] nor <s>, </s>"))?;
        Ok(Tokenizer { inner, begin, end, pad })
    }

    /// Tokens of the vocabulary, added ones too.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of a text, nothing added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, false).map_err(|e| Error::Invalid(format!("a text cannot be tokenized: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Begin, the ids cut so that at most `limit` remain in all, end; and whether anything was cut.
    pub fn encode_whole(&self, text: &str, limit: usize) -> Result<(Vec<u32>, bool)> {
        let mut ids = self.encode(text)?;
        let room = limit.saturating_sub(2);
        let cut = ids.len() > room;
        ids.truncate(room);
        Ok(([self.begin].into_iter().chain(ids).chain([self.end]).collect(), cut))
    }

    /// The text of ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| Error::Invalid(format!("ids cannot be decoded: {e}")))
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// All tokens with their ids.
    pub fn tokens(&self) -> HashMap<String, u32> {
        self.inner.get_vocab(true)
    }

    /// Writes `tokenizer.json`.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.inner.save(path, true).map_err(|e| Error::file(path, e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learned_tokenizer_gives_back_any_text_and_survives_its_file() {
        let texts: Vec<String> = ["Heart size is normal.", "Pleural effusion is observed on the left, 22 mm."].map(String::from).to_vec();
        let tokenizer = Tokenizer::train_byte_pair(&texts, 320).unwrap();
        assert_eq!((tokenizer.id("<unk>"), tokenizer.begin, tokenizer.end), (Some(0), 1, 2));
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(&folder.path().join("tokenizer.json")).unwrap();
        let back = Tokenizer::read(folder.path()).unwrap();
        for text in texts.iter().map(String::as_str).chain(["Größe 3,5 cm; <40 HU>"]) {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            assert_eq!(back.encode(text).unwrap(), ids);
        }
    }

    #[test]
    fn a_long_text_is_cut_before_its_end_token_and_says_so() {
        let tokenizer = Tokenizer::train_byte_pair(&["a b c".to_string()], 300).unwrap();
        let (ids, cut) = tokenizer.encode_whole("a b c a b c", 4).unwrap();
        assert!(cut && ids.len() == 4 && ids[0] == tokenizer.begin && ids[3] == tokenizer.end);
    }
}
