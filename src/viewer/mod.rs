//! Self-contained HTML pages: scans with the patches that each structure observed, reports side by side, tables of scores.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use candle_core::{D, Tensor};
use minijinja::{Environment, context};
use serde::Serialize;

use crate::{Error, Result};

const TEMPLATE: &str = include_str!("page.html");

/// A page: tables first, then one section a study.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Page {
    /// The page's title.
    pub title: String,
    /// What the reader must know first ("phantoms", "draft, not for diagnosis").
    pub notice: String,
    /// Tables of scores.
    pub tables: Vec<Table>,
    /// Studies to look at.
    pub studies: Vec<StudyView>,
}

/// A table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Column heads.
    pub header: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
}

/// One study: its prepared volume, its reports, and what each structure looked at.
#[derive(Debug, Clone, Serialize)]
pub struct StudyView {
    /// The study's name.
    pub name: String,
    /// Prepared voxels (D, H, W).
    pub shape: [usize; 3],
    /// All axial slices in one 8-bit PNG, as a data URI.
    pub montage: String,
    /// Slices in a row of the montage.
    pub columns: usize,
    /// Reference and generated reports.
    pub reports: Vec<ReportView>,
    /// The structures with their selected patches.
    pub structures: Vec<StructureView>,
}

/// A report and how its findings compare with the reference's.
#[derive(Debug, Clone, Serialize)]
pub struct ReportView {
    /// `reference` or the decoder's name.
    pub source: String,
    /// The text.
    pub text: String,
    /// Finding, and `present`, `matched`, `missed` or `extra`.
    pub findings: Vec<(String, String)>,
}

/// A structure's selected patches.
#[derive(Debug, Clone, Serialize)]
pub struct StructureView {
    /// The structure's name.
    pub name: String,
    /// Boxes in prepared voxels: first (d, h, w), then one past the last (d, h, w).
    pub boxes: Vec<[usize; 6]>,
    /// Share of the structure's attention on each box.
    pub mass: Vec<f32>,
}

impl Page {
    /// The page as HTML with everything inside.
    pub fn render(&self) -> Result<String> {
        let mut environment = Environment::new();
        let fault = |e: minijinja::Error| Error::Invalid(format!("the page's template: {e:#}"));
        environment.add_template("page.html", TEMPLATE).map_err(fault)?;
        // "<" is written as an escape, so that no text can end the script element that holds the data
        let data = serde_json::to_string(&self.studies).map_err(|e| Error::Invalid(e.to_string()))?.replace('<', "\\u003c");
        let page = environment.get_template("page.html").map_err(fault)?;
        page.render(context! { title => self.title, notice => self.notice, tables => self.tables, studies => self.studies, data })
            .map_err(fault)
    }
}

/// All axial slices of a prepared volume (1, D, H, W) in [-1, 1] as one 8-bit PNG: a data URI and the slices in a row.
///
/// A slice is drawn with x (the prepared H axis) to the right and y (the prepared W axis) downwards, as radiologists see it.
pub fn montage(volume: &Tensor) -> Result<(String, usize)> {
    let (_, d, h, w) = volume.dims4()?;
    let columns = (d as f64).sqrt().ceil() as usize;
    let rows = d.div_ceil(columns);
    let slices: Vec<f32> = volume.squeeze(0)?.transpose(D::Minus1, D::Minus2)?.contiguous()?.flatten_all()?.to_vec1()?;
    let mut pixels = vec![0u8; columns * h * rows * w];
    for (index, slice) in slices.chunks_exact(h * w).enumerate() {
        let (top, left) = (index / columns * w, index % columns * h);
        for (y, line) in slice.chunks_exact(h).enumerate() {
            let start = (top + y) * columns * h + left;
            let shades = line.iter().map(|value| ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8);
            pixels[start..start + h].iter_mut().zip(shades).for_each(|(pixel, shade)| *pixel = shade);
        }
    }
    let png = encode_png(&pixels, columns * h, rows * w).map_err(|e| Error::Invalid(format!("a PNG could not be written: {e}")))?;
    Ok((format!("data:image/png;base64,{}", STANDARD.encode(png)), columns))
}

fn encode_png(pixels: &[u8], width: usize, height: usize) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_montage_shows_x_to_the_right_and_y_downwards() {
        // one slice, H = 2 (x), W = 3 (y): value at x, y is -1 + (x + 2 y) / 5 * 2
        let values: Vec<f32> = (0..2).flat_map(|x| (0..3).map(move |y| -1.0 + (x + 2 * y) as f32 / 2.5)).collect();
        let volume = Tensor::from_vec(values, (1, 1, 2, 3), &Device::Cpu).unwrap();
        let (uri, columns) = montage(&volume).unwrap();
        let bytes = STANDARD.decode(uri.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; 6];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!((columns, pixels), (1, vec![0, 51, 102, 153, 204, 255]));
    }

    #[test]
    fn a_report_cannot_break_out_of_the_page() {
        let report = ReportView { source: "reference".into(), text: "</script><b>x".into(), findings: vec![] };
        let study =
            StudyView { name: "a".into(), shape: [1, 1, 1], montage: String::new(), columns: 1, reports: vec![report], structures: vec![] };
        let html = Page { title: "<t>".into(), studies: vec![study], ..Page::default() }.render().unwrap();
        assert!(!html.contains("</script><b>") && html.contains("&lt;t&gt;"), "{html}");
    }
}
