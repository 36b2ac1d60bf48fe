//! LLaMA-2's tokenizer against sentencepiece 0.2 on `tokenizer.model`.

use ctscribe::text::Tokenizer;
use sha2::{Digest, Sha256};

use super::fixtures::data;

/// Of the ids that sentencepiece gives the 800 reports, in the table's order: a line of numbers each, ended by a line feed.
const SENTENCEPIECE_SHA256: &str = "55c8b83d45519c081bc269f9429402f01481264d71ce4ef24fe31b8f5bbb784e";

#[test]
fn llama_2_s_tokenizer_gives_sentencepiece_s_ids_on_800_real_reports() {
    let (Some(folder), Some(table)) = (data("models/llama2-tokenizer"), data("text/ctclip_train.csv")) else { return };
    let tokenizer = Tokenizer::read(&folder).unwrap();
    let mut reader = csv::Reader::from_path(&table).unwrap();
    let column = reader.headers().unwrap().iter().position(|name| name == "report_text").unwrap();
    let ids: Vec<Vec<u32>> = reader.records().map(|row| tokenizer.encode(&row.unwrap()[column]).unwrap()).collect();
    assert_eq!((ids.len(), ids.iter().map(Vec::len).sum::<usize>()), (800, 369_905));
    let line = |ids: &Vec<u32>| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n";
    let digest = Sha256::digest(ids.iter().map(line).collect::<String>());
    assert_eq!(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), SENTENCEPIECE_SHA256);
}

#[test]
fn blanks_line_ends_digits_and_bytes_outside_the_vocabulary_are_sentencepiece_s_too() {
    let Some(folder) = data("models/llama2-tokenizer") else { return };
    let tokenizer = Tokenizer::read(&folder).unwrap();
    let cases: [(&str, &[u32]); 5] = [
        ("Heart size is normal.", &[17778, 2159, 338, 4226, 29889]),
        ("  two  spaces\nand a line", &[259, 1023, 29871, 8162, 13, 392, 263, 1196]),
        (
            "3x4 mm, 12.5 cm; éü ∅ 肺 🫁",
            &[
                29871, 29941, 29916, 29946, 5654, 29892, 29871, 29896, 29906, 29889, 29945, 7477, 29936, 904, 29993, 29871, 31118, 29871,
                235, 133, 189, 29871, 243, 162, 174, 132,
            ],
        ),
        ("\tTab", &[29871, 12, 8863]),
        ("", &[]),
    ];
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
}
