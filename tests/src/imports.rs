//! The rule of the rooms: which crate may import which, and why.
//!
//! ```text
//!   cutover ◄── wire, identity ◄── ctl
//!      ▲          ▲
//!      ├──────────┴──────── controller            abi ◄── programs
//!      └── netlink, hypervisor ◄── agent ──► loader ──► abi
//! ```
//!
//! Only declared dependencies are looked at, so features and targets cannot hide one.

use std::fmt;

use cargo_metadata::{DependencyKind, Metadata};

/// One crate names another one in its `Cargo.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Package that names the other.
    pub from: String,
    /// Package it names.
    pub to: String,
    /// For tests only. Build scripts count as the crate itself: what they generate ends up in it.
    pub dev: bool,
}

/// Packages, and who imports whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    /// All packages of ours.
    pub packages: Vec<String>,
    /// What they import, of ours or not.
    pub imports: Vec<Import>,
}

/// An import that must not be, or one that must be and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `from -> to`, or the package alone.
    pub edge: String,
    /// Why it is against the rule, and what to do instead.
    pub why: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.edge, self.why)
    }
}

/// What a package may import.
enum Allowed {
    /// These and nothing else, of ours or not. Tests may import what they like.
    Only(&'static [&'static str]),
    /// Nothing at all, tests included.
    Nothing,
    /// Of our packages these; of others' any. Tests too.
    OfOurs(&'static [&'static str]),
}

struct Rule {
    package: &'static str,
    allowed: Allowed,
    why: &'static str,
}

const RULES: [Rule; 8] = [
    Rule {
        package: "throughline-cutover",
        allowed: Allowed::Only(&["serde", "thiserror"]),
        why: "the decisions are pure: they take `now` as an argument and return effects; do the IO in the agent's or the \
              controller's driver",
    },
    Rule {
        package: "throughline-abi",
        allowed: Allowed::Nothing,
        why: "it is compiled into the kernel's programs as well; keep it plain data",
    },
    Rule {
        package: "throughline-wire",
        allowed: Allowed::OfOurs(&["throughline-cutover"]),
        why: "it converts between the protocol and the domain's types and knows nobody who speaks it",
    },
    Rule {
        package: "throughline-identity",
        allowed: Allowed::OfOurs(&["throughline-cutover"]),
        why: "it says who is at the other end of a connection and knows nothing of what is said over it",
    },
    Rule {
        package: "throughline-confine",
        allowed: Allowed::OfOurs(&[]),
        why: "it gives up privileges and opens files, whoever's they are",
    },
    Rule {
        package: "throughline-ctl",
        allowed: Allowed::OfOurs(&["throughline-wire", "throughline-identity"]),
        why: "the operator's command is a client like any other: what it needs must be in the protocol",
    },
    Rule {
        package: "throughline-programs",
        allowed: Allowed::OfOurs(&["throughline-abi"]),
        why: "it runs in the kernel; what it shares with user space is in the abi",
    },
    Rule {
        package: "throughline-probe",
        allowed: Allowed::OfOurs(&[]),
        why: "the probes trust nobody, so that their counts prove something",
    },
];

/// Packages of the two daemons, and who else may import them: tests, what fuzzing reads with, and the lab that plays them.
const DAEMONS: [(&str, &[&str]); 4] = [
    ("throughline-agent", &[]),
    ("throughline-controller", &[]),
    ("throughline-netlink", &["throughline-agent"]),
    ("throughline-hypervisor", &["throughline-agent"]),
];
const STAGE: [&str; 3] = ["throughline-tests", "throughline-decoders", "throughline-lab"];

/// Imports that must exist: without them two sides would each have their own idea of the same bytes.
const NEEDED: [(&str, &str); 3] = [
    ("throughline-programs", "throughline-abi"),
    ("throughline-loader", "throughline-abi"),
    ("throughline-wire", "throughline-cutover"),
];

impl Graph {
    /// Adds what `cargo metadata` says about a workspace.
    pub fn add(&mut self, metadata: &Metadata) {
        for package in metadata.workspace_packages() {
            self.packages.push(package.name.to_string());
            self.imports.extend(package.dependencies.iter().map(|dependency| Import {
                from: package.name.to_string(),
                to: dependency.name.clone(),
                dev: dependency.kind == DependencyKind::Development,
            }));
        }
    }

    /// All that is against the rule; empty if nothing is.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = self.missing();
        for import in &self.imports {
            violations.extend(RULES.iter().filter_map(|rule| self.against(rule, import)));
            violations.extend(of_a_daemon(import));
        }
        violations
    }

    fn missing(&self) -> Vec<Violation> {
        let ruled = RULES.iter().map(|rule| rule.package).chain(DAEMONS.iter().map(|(package, _)| *package));
        let unknown = ruled.filter(|package| !self.ours(package)).map(|package| Violation {
            edge: package.to_owned(),
            why: "there is no such package, so its rule checks nothing; if it was renamed, rename it in \
                  tests/src/imports.rs"
                .to_owned(),
        });
        let absent = |(from, to): &&(&str, &str)| !self.imports.iter().any(|it| it.from == *from && it.to == *to);
        let absent = NEEDED.iter().filter(absent).map(|(from, to)| Violation {
            edge: format!("{from} -> {to}"),
            why: "this import is missing: both sides must use the same types".to_owned(),
        });
        unknown.chain(absent).collect()
    }

    fn ours(&self, package: &str) -> bool {
        self.packages.iter().any(|ours| ours == package)
    }

    fn against(&self, rule: &Rule, import: &Import) -> Option<Violation> {
        let fine = import.from != rule.package
            || match rule.allowed {
                Allowed::Only(allowed) => import.dev || allowed.contains(&import.to.as_str()),
                Allowed::Nothing => false,
                Allowed::OfOurs(allowed) => !self.ours(&import.to) || allowed.contains(&import.to.as_str()),
            };
        (!fine).then(|| forbidden(import, rule.why))
    }
}

fn of_a_daemon(import: &Import) -> Option<Violation> {
    let (daemon, importers) = DAEMONS.iter().find(|(daemon, _)| *daemon == import.to)?;
    let fine = STAGE.contains(&import.from.as_str()) || importers.contains(&import.from.as_str());
    let why =
        format!("nothing but its own programs and tests builds on {daemon}; move what both need to cutover or wire");
    (!fine).then(|| forbidden(import, &why))
}

fn forbidden(import: &Import, why: &str) -> Violation {
    let scope = if import.dev { " (for tests)" } else { "" };
    Violation { edge: format!("{} -> {}{scope}", import.from, import.to), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A graph in order, and these imports besides.
    fn with(imports: &[(&str, &str, bool)]) -> Graph {
        let packages = RULES.iter().map(|rule| rule.package).chain(DAEMONS.iter().map(|(package, _)| *package));
        let packages = packages.chain(["throughline-loader", "throughline-lab", "throughline-tests"]);
        let needed = NEEDED.iter().map(|(from, to)| (*from, *to, false));
        let import = |(from, to, dev): (&str, &str, bool)| Import { from: from.to_owned(), to: to.to_owned(), dev };
        Graph {
            packages: packages.map(str::to_owned).collect(),
            imports: needed.chain(imports.iter().copied()).map(import).collect(),
        }
    }

    #[test]
    fn what_the_rooms_need_is_allowed() {
        let graph = with(&[
            ("throughline-cutover", "serde", false),
            ("throughline-cutover", "proptest", true),
            ("throughline-wire", "tonic", false),
            ("throughline-ctl", "throughline-wire", false),
            ("throughline-agent", "throughline-hypervisor", false),
            ("throughline-tests", "throughline-controller", true),
            ("throughline-lab", "throughline-agent", false),
        ]);
        assert_eq!(graph.violations(), []);
    }

    #[test]
    fn every_forbidden_import_is_found_alone() {
        for (from, to, dev) in [
            ("throughline-cutover", "tokio", false),
            ("throughline-cutover", "throughline-wire", false),
            ("throughline-abi", "serde", true),
            ("throughline-wire", "throughline-loader", false),
            ("throughline-ctl", "throughline-cutover", false),
            ("throughline-ctl", "throughline-cutover", true),
            ("throughline-programs", "throughline-loader", false),
            ("throughline-probe", "throughline-abi", false),
            ("throughline-controller", "throughline-agent", false),
            ("throughline-controller", "throughline-netlink", false),
            ("throughline-loader", "throughline-controller", true),
        ] {
            let violations = with(&[(from, to, dev)]).violations();
            let [violation] = violations.as_slice() else { panic!("{from} -> {to}: {violations:?}") };
            assert!(violation.to_string().starts_with(&format!("{from} -> {to}")), "{violation}");
            assert!(violation.why.len() > 20, "says why: {violation}");
        }
    }

    #[test]
    fn a_rule_for_nobody_and_a_needed_import_that_is_gone_are_found() {
        let mut graph = with(&[]);
        graph.packages.retain(|package| package != "throughline-abi");
        graph.imports.retain(|import| import.from != "throughline-programs");
        let edges: Vec<_> = graph.violations().into_iter().map(|violation| violation.edge).collect();
        assert_eq!(edges, ["throughline-abi", "throughline-programs -> throughline-abi"]);
    }
}
