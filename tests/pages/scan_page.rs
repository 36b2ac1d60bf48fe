//! The page of a scan: what clicks, keys and presets do.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::trained::{succeed, text, trained};

const REFERENCE: &str = "Trachea is open. Heart size is increased. Pleural effusion measuring 22 mm is observed on the left. \
    A nodule is seen in the upper lobe of the right lung. Contrast was given.";

/// The page of a phantom beside a reference report.
fn page(folder: &std::path::Path) -> PathBuf {
    let (scan, run, reference, page) = (trained().scan(), trained().path("run"), folder.join("reference.txt"), folder.join("page.html"));
    std::fs::write(&reference, REFERENCE).unwrap();
    let html = succeed(&["generate", text(&scan), "--run", text(&run), "--format", "html", "--reference", text(&reference)]);
    std::fs::write(&page, html).unwrap();
    page
}

const SENTENCE: &str = "article[data-source=reference] .sentence";

fn sentence(of: &str) -> String {
    format!("return [...document.querySelectorAll('{SENTENCE}')].findIndex(one => one.textContent.includes('{of}'))")
}

#[test]
fn a_sentence_shows_its_patches_and_a_patch_its_sentences() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    browser.open_study(&page(folder.path()));
    assert_eq!(browser.number(&format!("return document.querySelectorAll('{SENTENCE}').length")), 5.0);

    let before = browser.pixels("axial");
    let heart = browser.number(&sentence("Heart size"));
    browser.redrawn(|browser| browser.click(&format!("{SENTENCE}:nth-of-type({})", heart + 1.0)));
    let pressed = "return [...document.querySelectorAll('#structures [aria-pressed=true]')].map(one => one.textContent).join()";
    assert_eq!(browser.text(pressed), "heart");
    assert_ne!(browser.pixels("axial"), before);
    assert!(browser.text("return document.getElementById('under').textContent").starts_with("patch of heart"));
    let listed = browser.number("return document.querySelectorAll('[data-patch]').length");
    assert_eq!(listed, 10.0);

    // a patch from the list, then one on a view: the crosshair stands on it, so the place under it is clicked
    let pointed = "return [...document.querySelectorAll('.sentence.pointed')].map(one => one.textContent.trim()).join('|')";
    browser.redrawn(|browser| browser.click("[data-patch='3.0']"));
    assert!(browser.text(pointed).contains("Heart size is increased."), "{}", browser.text(pointed));
    browser.keys("\u{E00C}"); // Escape
    browser.wait_for(pointed, "");
    browser.redrawn(|browser| browser.click("[data-structure='3']"));
    let place = browser.run(
        "const canvas = document.querySelector('[data-plane=axial] canvas'), context = canvas.getContext('2d');
         const data = context.getImageData(0, 0, canvas.width, canvas.height).data, [r, g, b] = [255, 107, 74];
         for (let i = 0; i < data.length; i += 4) if (Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 30) {
           const at = i / 4; return [(at % canvas.width + 4) / canvas.width, (Math.floor(at / canvas.width) + 4) / canvas.height];
         }",
    );
    let share = |axis: usize| place[axis].as_f64().expect("a patch of the heart is outlined in its colour");
    browser.redrawn(|browser| browser.click_at("[data-plane=axial] canvas", share(0), share(1)));
    assert!(browser.text(pointed).contains("Heart size is increased."), "{}", browser.text(pointed));
    browser.assert_quiet();
}

#[test]
fn findings_are_compared_with_the_references() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    browser.open_study(&page(folder.path()));
    let chips = |source: &str, class: &str| {
        browser.text(&format!(
            "return [...document.querySelectorAll('article[data-source={source}] .finding.{class}')].map(one => one.dataset.finding).join()"
        ))
    };
    // cardiomegaly, lung nodule, pleural effusion; a decoder of two training steps finds what it finds
    assert_eq!(chips("reference", "present"), "2,9,12");
    let split = |text: String| text.split(',').filter(|one| !one.is_empty()).map(str::to_string).collect::<Vec<_>>();
    let (matched, missed) = (split(chips("llama", "matched")), split(chips("llama", "missed")));
    assert_eq!(matched.len() + missed.len(), 3, "{matched:?} {missed:?}");
    let summary = browser.text("return document.querySelector('article[data-source=llama] h3 small').textContent");
    assert!(summary.starts_with(&format!("{} matched, {} missed", matched.len(), missed.len())), "{summary}");
    browser.redrawn(|browser| browser.click("article[data-source=reference] .finding"));
    let named = browser.text("return [...document.querySelectorAll('.sentence.named')].map(one => one.textContent).join()");
    assert!(named.contains("Heart size is increased."), "{named}");
    browser.assert_quiet();
}

#[test]
fn overlays_windows_and_scrolling_change_what_is_drawn_and_the_same_state_draws_the_same() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let page = page(folder.path());
    browser.open_study(&page);
    let mut seen = vec![browser.pixels("axial")];
    let mut differs = |what: &str| {
        let pixels = browser.pixels("axial");
        assert!(!seen.contains(&pixels), "{what} changed nothing");
        seen.push(pixels);
    };
    for overlay in ["attention", "none"] {
        browser.redrawn(|browser| browser.click(&format!("[data-overlay={overlay}]")));
        differs(overlay);
    }
    for window in ["mediastinum", "bone", "full"] {
        browser.redrawn(|browser| browser.click(&format!("[data-window={window}]")));
        differs(window);
    }
    assert_eq!(browser.text("return document.getElementById('level').textContent"), "C 0 W 2000");
    // a slice up by the keyboard moves the axial view and, in the others, the crosshair alone
    let slice = "return document.querySelector('[data-plane=axial] output').textContent";
    let at = browser.text(slice);
    browser.keys("a");
    browser.redrawn(|browser| browser.keys("\u{E013}"));
    assert_ne!(browser.text(slice), at);
    differs("a slice up");
    let coronal = browser.pixels("coronal");
    browser.redrawn(|browser| browser.click_at("[data-plane=axial] canvas", 0.42, 0.4));
    assert_ne!(browser.pixels("coronal"), coronal, "a click on the axial view moves the coronal one");
    // rendered twice: the same pixels, in the window as on the canvases
    browser.chromium("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-reduced-motion", "value": "reduce" }] }));
    let drawn = || {
        browser.open_study(&page);
        (browser.settled_screenshot(), [browser.pixels("axial"), browser.pixels("sagittal")])
    };
    let mut renderings = vec![drawn()];
    // a busy machine may show a window before it is painted, again and again the same: then once more
    for _ in 0..5 {
        let (window, canvases) = drawn();
        assert_eq!(canvases, renderings[0].1, "two renderings' canvases");
        let again = renderings.iter().any(|(earlier, _)| *earlier == window);
        renderings.push((window, canvases));
        if again {
            break;
        }
    }
    let windows: Vec<_> = renderings.iter().map(|(window, _)| window).collect();
    assert!(windows[..windows.len() - 1].contains(&windows[windows.len() - 1]), "{} renderings' windows differ", windows.len());
    browser.assert_quiet();
}

#[test]
fn the_volume_in_the_page_is_the_scan_and_lies_where_the_scan_lies() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    browser.open_study(&page(folder.path()));
    // the patient's right stands on the left, the readings are millimetres of the scan: x falls from left to right
    let read = |browser: &Browser, x: f64| {
        browser.redrawn(|browser| browser.click_at("[data-plane=axial] canvas", x, 0.5));
        (
            browser.text("return document.getElementById('where').textContent"),
            browser.text("return document.getElementById('hu').textContent"),
        )
    };
    let ((right, _), (left, _)) = (read(&browser, 0.35), read(&browser, 0.65));
    assert!(right.starts_with("R ") && left.starts_with("L "), "{right} | {left}");
    let (_, air) = read(&browser, 0.02);
    assert!(air.strip_suffix(" HU").unwrap().parse::<i32>().unwrap() < -900, "outside of the body there is air: {air}");
}

#[test]
fn everything_is_reached_by_keys_and_named_for_screen_readers() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    browser.open_study(&page(folder.path()));
    // windows, overlay, structures, by their keys
    browser.keys("3");
    browser.wait_for("return document.querySelector('[data-window][aria-pressed=true]').dataset.window", "bone");
    browser.keys("o");
    browser.wait_for("return document.querySelector('[data-overlay][aria-pressed=true]').dataset.overlay", "attention");
    browser.keys("]]");
    browser.wait_for("return document.querySelector('#structures [aria-pressed=true]').textContent", "trachea bronchi");
    // the tab key reaches sentences, Enter presses them
    let stops = "const stops = [...document.querySelectorAll('button, select, input, canvas, [tabindex]')].filter(one => one.tabIndex >= 0 && one.offsetParent);
        return stops.map(one => one.tagName + '.' + one.className)";
    let stops = browser.run(stops);
    let count = |kind: &str| stops.as_array().unwrap().iter().filter(|stop| stop.as_str().unwrap().starts_with(kind)).count();
    assert!(count("CANVAS") == 3 && count("SPAN.sentence") >= 5 && count("BUTTON") >= 20, "{stops}");
    browser.run(&format!("document.querySelectorAll('{SENTENCE}')[1].focus()"));
    browser.keys("\u{E007}"); // Enter
    browser.wait_for("return document.querySelector('.sentence[aria-pressed=true]')?.textContent ?? ''", "Heart size is increased.");
    // names: every control has one, every canvas says its slice
    let nameless = "return [...document.querySelectorAll('button, select, input, canvas, [role=button], section[role], table')]
        .filter(one => !(one.textContent.trim() || one.ariaLabel || one.labels?.length || one.title)).map(one => one.outerHTML.slice(0, 90))";
    assert_eq!(browser.run(nameless), json!([]));
    assert!(browser.text("return document.querySelector('[data-plane=coronal] canvas').ariaLabel").starts_with("Coronal view, slice "));
    browser.keys("?");
    browser.wait("return document.getElementById('help').open");
    browser.keys("\u{E00C}");
    browser.wait("return !document.getElementById('help').open");
    browser.assert_quiet();
}

/// The least contrast (WCAG 2) of the texts that are seen, with the text that has it.
const CONTRAST: &str = "
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = one => { for (; one; one = one.parentElement) { const c = parse(getComputedStyle(one).backgroundColor); if (c.length < 4 || c[3] > 0.99) return c; } return [255, 255, 255]; };
    let least = [99, ''];
    for (const one of document.querySelectorAll('body *')) {
        if (!one.offsetParent || ![...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) || one.closest('.unseen, dialog, figure')) continue;
        const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < least[0]) least = [ratio, one.outerHTML.slice(0, 120)];
    }
    return least";

#[test]
fn dark_and_light_follow_the_system_and_the_switch_and_are_legible() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let page = page(folder.path());
    let scheme = |browser: &Browser, name: &str| {
        browser.chromium("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": name }] }))
    };
    let ground = "return getComputedStyle(document.body).backgroundColor";
    let mut grounds: Vec<Value> = Vec::new();
    for name in ["dark", "light"] {
        scheme(&browser, name);
        browser.open_study(&page);
        grounds.push(browser.run(ground));
        assert_eq!(browser.text("return document.documentElement.dataset.theme"), name);
        std::thread::sleep(std::time::Duration::from_millis(200)); // colours fade into each other
        let least = browser.run(CONTRAST);
        assert!(least[0].as_f64().unwrap() >= 4.5, "{name}: {least}");
    }
    assert_ne!(grounds[0], grounds[1]);
    browser.click("#theme");
    assert_eq!(browser.text("return document.documentElement.dataset.theme"), "dark");
    browser.wait(&format!("return getComputedStyle(document.body).backgroundColor === '{}'", grounds[0].as_str().unwrap()));
    browser.assert_quiet();
}

#[test]
fn the_page_prints_its_reports_and_views_without_its_controls() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    browser.open_study(&page(folder.path()));
    browser.chromium("Emulation.setEmulatedMedia", json!({ "media": "print" }));
    let seen = |selector: &str| {
        browser.number(&format!("return [...document.querySelectorAll('{selector}')].filter(one => one.offsetParent).length"))
    };
    assert_eq!((seen("#theme"), seen("[data-window]"), seen("input[type=range]")), (0.0, 0.0, 0.0));
    assert_eq!((seen("canvas"), seen("article")), (3.0, 2.0));
    let whole = "const box = one => one.getBoundingClientRect(), views = box(document.getElementById('views'));
        return [...document.querySelectorAll('canvas')].every(one => box(one).bottom <= views.bottom + 1 && box(one).height > 50)";
    assert_eq!(browser.run(whole), Value::Bool(true), "a view is cut off");
    assert!(browser.text("return document.querySelector('.notice').textContent").contains("not for diagnosis"));
    let pdf = browser.chromium("Page.printToPDF", json!({ "printBackground": true }));
    assert!(pdf["data"].as_str().unwrap().len() > 20_000);
}

#[test]
fn a_damaged_volume_is_said_and_not_drawn() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = page(folder.path());
    let html = std::fs::read_to_string(&path).unwrap();
    let begin = html.find("id=\"volume-0\">").unwrap() + 14;
    std::fs::write(&path, format!("{}AAAA{}", &html[..begin + 400], &html[begin + 404..])).unwrap();
    browser.open(&path);
    browser.wait("return !document.getElementById('fault').hidden");
    let said = browser.text("return document.getElementById('fault').textContent");
    assert!(said.contains(" cannot be shown: "), "{said}");
}

#[test]
fn a_narrow_window_holds_everything_without_scrolling_sideways() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    for width in [390, 820, 1200] {
        browser.chromium(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500 }),
        );
        browser.open_study(&page(folder.path()));
        let wide = browser.number("return document.documentElement.scrollWidth");
        assert!(wide <= f64::from(width) + 1.0, "{wide} on {width}");
        assert!(
            browser.number(
                "return Math.min(...[...document.querySelectorAll('canvas')].map(one => Math.min(one.clientWidth, one.clientHeight)))"
            ) > 100.0
        );
    }
}
