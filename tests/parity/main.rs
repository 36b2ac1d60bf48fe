//! Numbers made by the peers' own code, reproduced. Fixtures lie in `CTSCRIBE_FIXTURES` (default `../shared/fixtures`);
//! where they are absent each test says so and passes over.

mod bert;
mod conventions;
mod ctvit;
mod fixtures;
mod llama;
mod mapped;
mod metrics;
mod preparation;
mod splitter;
mod structure;
mod together;
mod tokenizer;
