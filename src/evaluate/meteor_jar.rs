//! METEOR 1.5 (Denkowski and Lavie, 2014) through its own jar, driven as pycocoevalcap drives it: `java -jar JAR - - -stdio -l en -norm`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::{Error, Result};

/// What the jar said.
#[derive(Debug, Clone, PartialEq)]
pub struct MeteorJar {
    /// Of all pairs together: what pycocoevalcap reports.
    pub corpus: f64,
    /// Of each pair.
    pub per_item: Vec<f64>,
}

/// Scores pairs (hypothesis, reference) of words joined by blanks; needs `java` in the path.
pub fn meteor_jar(jar: &Path, pairs: &[(String, String)]) -> Result<MeteorJar> {
    if !jar.is_file() {
        return Err(Error::file(jar, "is not there (expected meteor-1.5.jar)"));
    }
    let mut java = Command::new("java");
    java.args(["-Xmx2G", "-jar"]).arg(jar).args(["-", "-", "-stdio", "-l", "en", "-norm"]);
    let child = java.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|e| Error::Invalid(format!("METEOR 1.5 needs java, which could not be started: {e}")))?;
    let found = converse(jar, &mut child, pairs);
    // The jar waits for more until it is told to end.
    let _ = child.kill();
    let _ = child.wait();
    found
}

fn converse(jar: &Path, child: &mut Child, pairs: &[(String, String)]) -> Result<MeteorJar> {
    let silent = || Error::file(jar, "java ended before it answered; is it meteor-1.5.jar with its data?");
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Err(silent()) };
    let mut answers = BufReader::new(output).lines();
    let mut ask = |input: &mut ChildStdin, line: &str| -> Result<String> {
        if !line.is_empty() {
            writeln!(input, "{line}").and_then(|()| input.flush()).map_err(|_| silent())?;
        }
        answers.next().and_then(std::result::Result::ok).ok_or_else(silent)
    };
    let mut statistics = "EVAL".to_string();
    for (hypothesis, reference) in pairs {
        let hypothesis = hypothesis.replace("|||", "").replace("  ", " ");
        let line = ask(&mut input, &format!("SCORE ||| {reference} ||| {hypothesis}"))?;
        statistics.push_str(" ||| ");
        statistics.push_str(line.trim());
    }
    let number = |line: String| line.trim().parse::<f64>().map_err(|_| Error::file(jar, format!("a number was expected, it said {line}")));
    let mut next = ask(&mut input, &statistics).and_then(number);
    let mut per_item = Vec::new();
    for _ in pairs {
        per_item.push(next?);
        next = ask(&mut input, "").and_then(number);
    }
    Ok(MeteorJar { corpus: next?, per_item })
}
