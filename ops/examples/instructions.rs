//! Does a hot kernel's work so many times, to be counted from outside (`scripts/check-instructions`); without arguments, their names.

#[path = "../benches/hot.rs"]
mod hot;

fn main() -> candle_core::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, count] = &arguments[..] else {
        hot::KERNELS.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    };
    let Some((_, work)) = hot::KERNELS.iter().find(|(own, _)| own == name) else { candle_core::bail!("no kernel {name:?}") };
    let (work, count) = (work()?, count.parse::<usize>().map_err(candle_core::Error::wrap)?);
    (0..count).try_for_each(|_| work())
}
