//! The audit as one HTML page with everything inside.

use minijinja::{Environment, context};
use serde::Serialize;

use crate::{Error, Result};

use super::Audit;

const TEMPLATE: &str = include_str!("audit.html");

#[derive(Serialize)]
struct Colour<'a> {
    name: &'a str,
    hue: usize,
    sentences: usize,
}

impl Audit {
    /// The assignments as HTML: a colour a structure, to be filtered by structure.
    pub fn page(&self, title: &str) -> Result<String> {
        let count = self.structures.len();
        // Hues far apart for neighbours in the list; 7 shares no factor with the ten structures.
        let colour = |(index, structure)| {
            let super::StructureAudit { name, sentences, .. }: &super::StructureAudit = structure;
            Colour { name, hue: index * 7 % count * 360 / count, sentences: *sentences }
        };
        let structures: Vec<Colour> = self.structures.iter().enumerate().map(colour).collect();
        let fault = |e: minijinja::Error| Error::Invalid(format!("the audit's template: {e:#}"));
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_template("audit.html", TEMPLATE).map_err(fault)?;
        let template = environment.get_template("audit.html").map_err(fault)?;
        let values = context! { title, structures, reports => self.assigned, sentences => self.sentences, unassigned => self.by_count[0] };
        template.render(values).map_err(fault)
    }
}
