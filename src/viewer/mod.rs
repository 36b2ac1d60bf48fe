//! Self-contained HTML pages: scans with the patches that each structure observed, reports side by side, scores and curves of a run; PNG panels.

mod panels;
mod scores;
mod shades;
mod shown;
mod study;

use minijinja::{Environment, context};
use serde::Serialize;

use crate::text::FINDINGS;
use crate::{Error, Result};

pub use panels::{Panel, write_panels};
pub use scores::{Bar, BarGroup, Curve, Scores, Table};
pub use shown::Shown;
pub use study::{AttentionView, FindingState, PatchView, ReportView, SentenceView, Source, StructureView, StudyView, VolumeView};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// One script in the order in which its parts build on each other.
const SCRIPT: [&str; 6] = [
    include_str!("js/volume.js"),
    include_str!("js/state.js"),
    include_str!("js/views.js"),
    include_str!("js/reports.js"),
    include_str!("js/gallery.js"),
    include_str!("js/main.js"),
];

/// Voxels that a page of one study keeps: 240 x 240 x 120, about 3 MB once packed.
pub const ONE_STUDY: usize = 240 * 240 * 120;

/// Voxels that each of `studies` keeps: a page of many stays below about 40 MB.
pub fn voxel_budget(studies: usize) -> usize {
    (ONE_STUDY * 12 / studies.max(12)).max(1 << 18)
}

/// A page: a run's scores, if there are any, and studies to look at.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The page's title.
    pub title: String,
    /// What the reader must know first ("phantoms", "draft, not for diagnosis").
    pub notice: String,
    /// Scores and curves.
    pub scores: Option<Scores>,
    /// Studies to look at.
    pub studies: Vec<StudyView>,
    /// What each study scores, in their order, for the gallery; empty: no gallery.
    pub gallery: Vec<GalleryRow>,
    /// Which studies these are ("the 100 with the most label errors of 150").
    pub chosen: String,
}

/// What a study scores with each decoder.
#[derive(Debug, Clone, Serialize)]
pub struct GalleryRow {
    /// Decoder, and its scores by name.
    pub decoders: Vec<(String, Vec<(String, f64)>)>,
}

/// What the page's script reads.
#[derive(Serialize)]
struct Data<'a> {
    studies: &'a [StudyView],
    gallery: &'a [GalleryRow],
    findings: [&'static str; 18],
}

impl Page {
    /// The page as HTML with everything inside; it asks the network for nothing.
    pub fn render(&self) -> Result<String> {
        let fault = |e: minijinja::Error| Error::Invalid(format!("the page's template: {e:#}"));
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_template("page.html", TEMPLATE).map_err(fault)?;
        environment.add_filter("fixed", |value: f64, digits: usize| format!("{value:.digits$}"));
        environment.add_filter("signed", |value: f64, digits: usize| format!("{value:+.digits$}"));
        let data = Data { studies: &self.studies, gallery: &self.gallery, findings: FINDINGS };
        // "<" is written as an escape, so that no text can end the script element that holds the data
        let data = serde_json::to_string(&data).map_err(|e| Error::Invalid(e.to_string()))?.replace('<', "\\u003c");
        let volumes: Vec<&str> = self.studies.iter().map(|study| study.voxels.as_str()).collect();
        let names: Vec<&str> = self.studies.iter().map(|study| study.name.as_str()).collect();
        let page = environment.get_template("page.html").map_err(fault)?;
        page.render(context! {
            title => self.title, notice => self.notice, scores => self.scores, chosen => self.chosen, gallery => !self.gallery.is_empty(),
            style => STYLE, script => SCRIPT.concat(), version => env!("CARGO_PKG_VERSION"), data, volumes, names,
        })
        .map_err(fault)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::text::Structures;
    use crate::volume::{Geometry, Layout, Volume};

    #[test]
    fn a_report_cannot_break_out_of_the_page() {
        let affine = Volume::lps_affine([1.0; 3], [0.0; 3]);
        let geometry = Geometry { first: [0; 3], ratio: [1.0; 3], resampled: [2; 3], affine, layout: Layout::Zxy };
        let prepared = Tensor::zeros((1, 2, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let source = Source { name: "</script>a", prepared: &prepared, geometry: &geometry, range_hu: [-1000.0, 1000.0], evidence: &[] };
        let report = ReportView::new(&Structures::load("ours").unwrap(), "x", "</script><b>x. <i>y", None);
        let study = StudyView::new(&source, 8, vec![report]).unwrap();
        let page = Page { title: "<t>".into(), notice: "<n>".into(), studies: vec![study], ..Page::default() };
        let html = page.render().unwrap();
        assert!(!html.contains("<b>x") && !html.contains("</script>a") && html.contains("&lt;t&gt;"));
    }

    #[test]
    fn a_page_names_no_address_that_a_browser_would_ask() {
        let html = Page { title: "t".into(), ..Page::default() }.render().unwrap();
        for asked in ["http://", "https://", "//cdn", "@import", "src="] {
            let at = html.match_indices(asked).map(|(at, _)| &html[at.saturating_sub(60)..(at + 60).min(html.len())]).collect::<Vec<_>>();
            // the namespace of drawings is a name, not an address that is asked
            assert!(at.iter().all(|text| text.contains("http://www.w3.org/2000/svg")), "{asked}: {at:?}");
        }
    }
}
