//! What a move costs while it lasts, and what a port at rest does not pay.
//!
//! ```text
//! cargo bench -p throughline-loader --bench datapath -- [--json FILE] [steer|tcp|gso|hold ...]
//! ```
//!
//! Needs root and a machine that does nothing else; without names everything is measured, in some two minutes. Each row is
//! the median, least and most of several rounds, so that it says how much of it is noise.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made must stop")]

#[path = "../../tests/support/mod.rs"]
mod support;

mod gso;
mod guest;
mod hold;
mod report;
mod steer;
mod tcp;

use std::path::PathBuf;

use report::Report;

type Part = (&'static str, fn(&mut Report));

const PARTS: [Part; 4] =
    [("steer", steer::measure), ("tcp", tcp::measure), ("gso", gso::measure), ("hold", hold::measure)];

fn main() {
    // At once and whole, threads that send without end included; devices and namespaces go with the process.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(101);
    }));
    let (json, wanted) = arguments();
    let mut report = Report::new();
    for (name, measure) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("datapath: {name}");
            measure(&mut report);
        }
    }
    report.print();
    if let Some(path) = json {
        report.write(&path);
    }
}

/// File for the results, and names of the parts asked for.
fn arguments() -> (Option<PathBuf>, Vec<String>) {
    let mut json = None;
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What cargo says to every bench.
            "--bench" => {}
            "--json" => json = Some(PathBuf::from(arguments.next().expect("--json needs a file"))),
            name if PARTS.iter().any(|(part, _)| *part == name) => wanted.push(argument),
            other => panic!("unknown argument {other}: [--json FILE] [steer|tcp|gso|hold ...]"),
        }
    }
    (json, wanted)
}
