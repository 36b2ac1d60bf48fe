//! Heat maps, read back by an independent reader: what is hot lies where the model looked.

use std::path::{Path, PathBuf};

use ctscribe::config::Config;
use ctscribe::data::phantom::draw;
use ctscribe::volume::{self, Grid, Spread, Volume, inverse, orient, to_mm, write_nifti};
use nifti::{InMemNiftiVolume, NiftiHeader, NiftiObject, RandomAccessNiftiVolume, ReaderOptions};
use serde_json::Value;

use crate::trained::{run, succeed, text, trained};

/// A way to store the same chest: which stored axis each of x, y, z becomes, which are flipped, and how far the patient lies turned about z.
struct Storing {
    order: [usize; 3],
    flipped: [bool; 3],
    degrees: f64,
}

const STORED: [Storing; 3] = [
    Storing { order: [0, 1, 2], flipped: [false; 3], degrees: 0.0 },
    Storing { order: [2, 0, 1], flipped: [true, false, true], degrees: 0.0 },
    Storing { order: [1, 0, 2], flipped: [false, true, false], degrees: 12.0 },
];

fn turned([x, y, z]: [f64; 3], degrees: f64) -> [f64; 3] {
    let (s, c) = degrees.to_radians().sin_cos();
    [c * x - s * y, s * x + c * y, z]
}

impl Storing {
    /// Voxels (z, y, x) and the grid, both as stored.
    fn store(&self, values: &[i16], grid: &Grid) -> (Vec<i16>, Grid) {
        let size = [grid.shape[2], grid.shape[1], grid.shape[0]]; // x, y, z
        let spacing = [grid.spacing_mm[2], grid.spacing_mm[1], grid.spacing_mm[0]];
        let new = self.order.map(|axis| size[axis]);
        let mut stored = Vec::with_capacity(values.len());
        let source = |at: [usize; 3]| {
            let mut old = [0; 3];
            for (axis, own) in self.order.into_iter().enumerate() {
                old[own] = if self.flipped[axis] { new[axis] - 1 - at[axis] } else { at[axis] };
            }
            old
        };
        for k in 0..new[2] {
            for j in 0..new[1] {
                stored.extend((0..new[0]).map(|i| {
                    let [x, y, z] = source([i, j, k]);
                    values[(z * size[1] + y) * size[0] + x]
                }));
            }
        }
        let mm = |at: [usize; 3]| turned(to_mm(&grid.affine, source(at).map(|place| place as f64)), self.degrees);
        let corner = mm([0, 0, 0]);
        let steps = [mm([1, 0, 0]), mm([0, 1, 0]), mm([0, 0, 1])];
        let affine =
            [0, 1, 2].map(|row| [steps[0][row] - corner[row], steps[1][row] - corner[row], steps[2][row] - corner[row], corner[row]]);
        let sides = self.order.map(|axis| spacing[axis]);
        (stored, Grid { shape: [new[2], new[1], new[0]], spacing_mm: [sides[2], sides[1], sides[0]], affine })
    }
}

/// A heat map, read by the crate `nifti` and placed by the file's own sform.
struct HeatMap {
    header: NiftiHeader,
    volume: InMemNiftiVolume,
    affine: [[f64; 4]; 3],
}

impl HeatMap {
    fn read(path: &Path) -> Self {
        let object = ReaderOptions::new().read_file(path).unwrap();
        let header = object.header().clone();
        let affine = [header.srow_x, header.srow_y, header.srow_z].map(|row| row.map(f64::from));
        HeatMap { header, volume: object.into_volume(), affine }
    }

    /// Millimetres and value of the hottest voxel; of equally hot ones, which there are at the scan's edge, the first.
    fn hottest(&self) -> ([f64; 3], f32) {
        let [_, nx, ny, nz, ..] = self.header.dim;
        let mut most = ([0; 3], f32::MIN);
        for at in (0..nz).flat_map(|k| (0..ny).flat_map(move |j| (0..nx).map(move |i| [i, j, k]))) {
            let value = self.volume.get_f32(&at).unwrap();
            if value > most.1 {
                most = (at, value);
            }
        }
        (to_mm(&self.affine, most.0.map(f64::from)), most.1)
    }

    /// The value of the voxel there, whose middle must be there too.
    fn at(&self, mm: [f64; 3]) -> f32 {
        let place = to_mm(&inverse(&self.affine), mm);
        let voxel = place.map(|at| at.round());
        assert!(place.iter().zip(voxel).all(|(at, middle)| (at - middle).abs() < 0.01), "no voxel's middle is at {mm:?}: {place:?}");
        self.volume.get_f32(&voxel.map(|at| at as u16)).unwrap()
    }
}

fn generate(scan: &Path, heat: &Path) -> Value {
    let run = trained().path("run");
    serde_json::from_str(&succeed(&["generate", text(scan), "--run", text(&run), "--format", "json", "--heatmaps", text(heat)])).unwrap()
}

/// A phantom as the three files that store it, each with how.
fn phantoms(folder: &Path) -> Vec<(&'static Storing, PathBuf)> {
    let config = Config::load("phantom", &[]).unwrap();
    let phantom = draw(3, 8, config.phantoms.as_ref().unwrap());
    let grid = Grid { shape: phantom.shape, spacing_mm: phantom.spacing_mm, affine: phantom.affine };
    let write = |(index, storing): (usize, &'static Storing)| {
        let (values, grid) = storing.store(&phantom.values, &grid);
        let path = folder.join(format!("stored{index}.nii.gz"));
        write_nifti(&path, &values, grid.shape, grid.spacing_mm, &grid.affine).unwrap();
        (storing, path)
    };
    STORED.iter().enumerate().map(write).collect()
}

#[test]
fn the_hottest_voxel_lies_in_the_strongest_patch_however_the_scan_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let mut straight: Vec<[f64; 3]> = Vec::new();
    for (storing, scan) in phantoms(folder.path()) {
        let report = generate(&scan, &folder.path().join("heat"));
        let own = volume::read(&scan).unwrap();
        for (s, structure) in report["structures"].as_array().unwrap().iter().enumerate() {
            let name = format!("{}.{}.nii.gz", report["study"].as_str().unwrap(), structure["name"].as_str().unwrap());
            let map = HeatMap::read(&folder.path().join("heat").join(name));
            let (header, (mm, value)) = (&map.header, map.hottest());
            assert_eq!([header.dim[3], header.dim[2], header.dim[1]].map(usize::from), own.shape);
            assert!(header.sform_code == 1 && header.scl_slope > 0.0);
            let strongest = &structure["patches"][0];
            let corner = |end: usize, axis: usize| strongest["box_mm"][end][axis].as_f64().unwrap();
            assert!(
                (0..3).all(|axis| (corner(0, axis)..=corner(1, axis)).contains(&mm[axis])),
                "{name:?} {mm:?} {strongest}",
                name = structure["name"]
            );
            // 6 x 8 x 6 patches: what stands in the report is the value at the patch's centre, which lies near some voxel
            let even = strongest["attention_mass"].as_f64().unwrap() * 288.0;
            assert!(f64::from(value) <= even * 1.004 && f64::from(value) > 0.75 * even, "{value} {even}");
            match straight.get(s) {
                None => straight.push(mm),
                Some(first) => {
                    let there = map.at(turned(*first, storing.degrees));
                    assert!((there - value).abs() <= 1.01 * header.scl_slope, "{}: {there} where {value} is expected", structure["name"]);
                }
            }
        }
    }
}

#[test]
fn attention_on_the_patch_that_holds_a_lesion_is_hot_at_the_lesion() {
    let config = Config::load("phantom", &[]).unwrap();
    let phantom = draw(3, 8, config.phantoms.as_ref().unwrap());
    let grid = Grid { shape: phantom.shape, spacing_mm: phantom.spacing_mm, affine: phantom.affine };
    let (vit, [d, h, w]) = (&config.vision.ct_vit, config.volume.shape());
    let (patches, size) = (vit.grid(d), vit.patch_shape());
    assert!(phantom.lesions.len() >= 2, "{:?}", phantom.lesions);
    for storing in &STORED {
        let (values, stored) = storing.store(&phantom.values, &grid);
        let values = values.iter().map(|value| f32::from(*value)).collect();
        let (path, format) = (PathBuf::new(), String::new());
        let scan =
            Volume { values, shape: stored.shape, spacing_mm: stored.spacing_mm, affine: stored.affine, path, format, notices: vec![] };
        let prepared = volume::prepare(&orient(scan, config.volume.orientation), &config.volume, None).unwrap();
        let to_prepared = inverse(&prepared.geometry.prepared_affine());
        let spread = Spread::new(&prepared.geometry, patches, size, &stored);
        for lesion in &phantom.lesions {
            let middle = [2, 1, 0].map(|axis| (lesion.first[axis] + lesion.end[axis] - 1) as f64 / 2.0);
            let mm = turned(to_mm(&grid.affine, middle), storing.degrees);
            let [x, y, z] = to_mm(&to_prepared, mm);
            let patch = [z, y, x].iter().zip(size).map(|(at, side)| ((at + 0.5) / side as f64) as usize).collect::<Vec<_>>();
            assert!(z < d as f64 && y < h as f64 && x < w as f64 && z.min(y).min(x) > -0.5, "{} lies outside", lesion.structure);
            let mut attention = vec![0.0; patches.iter().product()];
            attention[(patch[0] * patches[1] + patch[1]) * patches[2] + patch[2]] = 1.0;
            let heat = spread.spread(&attention, |value| value);
            let inside = to_mm(&inverse(&stored.affine), mm).map(|at| at.round() as usize);
            let value = heat[(inside[2] * stored.shape[1] + inside[1]) * stored.shape[2] + inside[0]];
            // anywhere in a patch the linear map is at least an eighth of what it is at the centre
            assert!(value >= 0.12, "{}: {value}", lesion.structure);
            let total = heat.iter().filter(|value| **value > 0.0).count();
            assert!(total < heat.len() / 3, "one patch must not warm the whole chest");
        }
    }
}

#[test]
fn panels_lie_beside_the_heat_maps_and_a_page_of_several_scans_is_refused() {
    let (folder, scan, run_folder) = (tempfile::tempdir().unwrap(), trained().scan(), trained().path("run"));
    let report = generate(&scan, folder.path());
    for structure in report["structures"].as_array().unwrap() {
        let name = format!("{}.{}.png", report["study"].as_str().unwrap(), structure["name"].as_str().unwrap());
        let file = std::io::BufReader::new(std::fs::File::open(folder.path().join(name)).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert!(info.width > 3 * 200 && info.height > 200, "{info:?}");
        let tinted = pixels.chunks_exact(3).filter(|pixel| pixel[0] > pixel[2].saturating_add(60)).count();
        let grey = pixels.chunks_exact(3).filter(|pixel| pixel[0] == pixel[2] && pixel[0] > 20).count();
        assert!(tinted > 200 && grey > 5_000, "{tinted} {grey}");
    }
    let (code, _, err) = run(&["generate", text(&scan), text(&scan), "--run", text(&run_folder), "--format", "html"]);
    assert!(code == 1 && err.contains("--format html is for a single scan, not for 2"), "{err}");
}
