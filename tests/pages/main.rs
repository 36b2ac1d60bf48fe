//! Pages and pictures: heat maps at their place in the scan, panels, and the pages themselves in a headless Chromium.

mod browser;
mod heatmaps;
mod many;
mod run_page;
mod scan_page;
#[path = "../cli/trained.rs"]
mod trained;
