//! Does a hot kernel's work so many times, to be counted from outside (`scripts/check-instructions`); without arguments, their names.

#[path = "../benches/hot.rs"]
mod hot;

fn main() -> candle_core::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, count] = &arguments[..] else {
        hot::KERNELS.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    };
    let (_, work) = hot::KERNELS.iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("no kernel {name:?}"));
    let (work, count) = (work()?, count.parse::<usize>().expect("a count"));
    (0..count).try_for_each(|_| work())
}
