//! The page of a run: scores, curves, gallery.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::browser::Browser;
use crate::trained::{run, succeed, text, trained};

/// The page of the tiny run, evaluated with both decoders.
fn page() -> &'static PathBuf {
    static PAGE: OnceLock<PathBuf> = OnceLock::new();
    PAGE.get_or_init(|| {
        let (run, cache, page) = (trained().path("run"), trained().path("cache"), trained().path("page.html"));
        for decoder in ["llama", "bert"] {
            succeed(&["evaluate", "--run", text(&run), "--data", text(&cache), "--decoder", decoder]);
        }
        succeed(&["view", "--run", text(&run), "--data", text(&cache), "--out", text(&page)]);
        page
    })
}

#[test]
fn scores_have_bars_with_intervals_and_curves_a_line_a_series() {
    let Some(browser) = Browser::start() else { return };
    browser.open(page());
    let bars = "return [...document.querySelectorAll('.bar-group table')].map(group => [group.caption.firstChild.textContent.trim(), ...[...group.tBodies[0].rows].map(row => row.cells[2].textContent)])";
    let bars = browser.run(bars);
    let group = |name: &str| {
        bars.as_array().unwrap().iter().find(|group| group[0] == name).unwrap_or_else(|| panic!("{name} is missing in {bars}"))
    };
    // the values are those of the evaluation
    for (column, decoder) in ["llama", "bert"].iter().enumerate() {
        let scores = std::fs::read_to_string(trained().path("run").join(decoder).join("reports/test.json")).unwrap();
        let scores: serde_json::Value = serde_json::from_str(&scores).unwrap();
        for metric in ["labels.f1.micro", "labels.f1.macro_supported"] {
            assert_eq!(group(metric)[column + 1], format!("{:.3}", scores["metrics"][metric].as_f64().unwrap()), "{decoder} {metric}");
        }
        let mean = format!("{:.3}", scores["metrics"]["rouge_l.coco.ptb_like"].as_f64().unwrap());
        assert_eq!(group("rouge_l.coco.ptb_like, mean of studies")[column + 1], mean);
    }
    let spilled = "return [...document.querySelectorAll('.whisker, .bar')].filter(one => {
        const box = one.getBoundingClientRect(), track = one.parentElement.getBoundingClientRect();
        return box.left < track.left - 1 || box.right > track.right + 4; }).length";
    assert_eq!(browser.number(spilled), 0.0);
    assert_eq!(
        browser
            .number("return document.querySelectorAll('.curve svg polyline').length > 8 ? document.querySelectorAll('.curve').length : 0"),
        4.0
    );
    browser.assert_quiet();
}

#[test]
fn studies_sort_by_error_and_are_paged_through_by_keys() {
    let Some(browser) = Browser::start() else { return };
    browser.open(page());
    browser.click("#tab-studies");
    browser.wait("return document.body.dataset.study !== undefined");
    let errors = "return [...document.querySelectorAll('#gallery tbody tr')].map(row => Number(row.cells[1].textContent))";
    let column = || browser.run(errors).as_array().unwrap().iter().map(|error| error.as_f64().unwrap()).collect::<Vec<_>>();
    let falling = column();
    assert!(falling.windows(2).all(|pair| pair[0] >= pair[1]) && falling.len() >= 3, "{falling:?}");
    browser.click("#gallery th[data-sort=errors] button");
    let rising = column();
    assert!(rising.windows(2).all(|pair| pair[0] <= pair[1]), "{rising:?}");
    let name = "return document.getElementById('study-name').textContent";
    let first = browser.text(name);
    let opened = |step: &str, from: &str| {
        browser.keys(step);
        browser.wait(&format!(
            "return document.getElementById('study-name').textContent !== '{from}' && document.body.dataset.study !== undefined"
        ));
        browser.text(name)
    };
    // the order was turned round: the worst is the last, so there is one before it
    let before = opened("p", &first);
    assert_eq!(opened("n", &before), first);
    assert_eq!(browser.number("return document.querySelectorAll('#reports article').length"), 3.0);
    // a decoder of two steps misses what is there: filtered to those studies, the others go
    browser.run("const chosen = document.getElementById('finding'); chosen.selectedIndex = [...chosen.options].findIndex(one => one.value.startsWith('missed')); chosen.dispatchEvent(new Event('change'))");
    let (shown, all) = (browser.number("return document.querySelectorAll('#gallery tbody tr:not([hidden])').length"), falling.len() as f64);
    assert_eq!(browser.text("return document.getElementById('count').textContent"), format!("{shown} of {all}"));
    browser.assert_quiet();
}

#[test]
fn a_run_that_was_not_evaluated_and_one_with_unknown_keys() {
    let (own, cache) = (trained().path("run"), trained().path("cache"));
    let (code, _, err) = run(&["view", "--run", text(&own), "--data", text(&cache), "--split", "validation"]);
    assert!(code == 1 && err.contains("holds no reports of the validation split (see `ctscribe evaluate --split validation`)"), "{err}");
    page();
    // another run folder, whose evaluation has keys that are not known yet: shown all the same
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("run");
    for name in ["config.yaml", "bert/reports/test.json", "bert/reports/test.jsonl"] {
        std::fs::create_dir_all(copy.join(name).parent().unwrap()).unwrap();
        std::fs::copy(own.join(name), copy.join(name)).unwrap();
    }
    for entry in std::fs::read_dir(own.join("observations")).unwrap().flatten() {
        std::fs::create_dir_all(copy.join("observations")).unwrap();
        std::fs::copy(entry.path(), copy.join("observations").join(entry.file_name())).unwrap();
    }
    let path = copy.join("bert/reports/test.json");
    let scores = std::fs::read_to_string(&path).unwrap().replacen('{', "{\"new_key\": {\"a\": [1, 2]},", 1);
    std::fs::write(&path, scores.replace("\"rouge_l.coco.ptb_like\":", "\"new_score\": 0.25, \"rouge_l.coco.ptb_like\":")).unwrap();
    // one study cannot be read: it is named and passed over
    let lost = std::fs::read_dir(copy.join("observations"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| text(path).contains("valid_1_a_1"));
    std::fs::remove_file(lost.unwrap()).unwrap();
    let out = folder.path().join("page.html");
    let (code, _, err) = run(&["view", "--run", text(&copy), "--data", text(&cache), "--out", text(&out)]);
    assert!(code == 3 && err.contains("valid_1_a_1"), "{code} {err}");
    assert!(std::fs::read_to_string(&out).unwrap().contains("new_score, mean of studies"));
}
