//! Which operator has which role: a file, one `NAME ROLE` a line.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use throughline_cutover::{InvalidName, OperatorName};
use tokio::{sync::watch, time};

use super::Role;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest file read, bytes.
const LARGEST: u64 = 1 << 20;

/// Who has which role. A name that is not in it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Book(BTreeMap<OperatorName, Role>);

impl Book {
    /// The role of an operator.
    pub(crate) fn role(&self, operator: &OperatorName) -> Option<Role> {
        self.0.get(operator).copied()
    }
}

/// A line that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadRoles {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: BadLine,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// Not two words.
    #[error("must be NAME ROLE, with # before a comment")]
    Words,
    /// The first word is no name.
    #[error("the name {0}")]
    Name(InvalidName),
    /// The second word is no role.
    #[error("the role must be viewer, operator or admin")]
    Role,
    /// The name comes a second time.
    #[error("{0} has a role already; give each operator one line")]
    Twice(OperatorName),
}

/// Why the roles are not known.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    /// The file cannot be read.
    #[error("cannot read the roles in {path}: {source}; make it a readable file, or give another --roles", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says something that is not understood.
    #[error("the roles in {path} are not understood, {bad}", path = path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, and why.
        bad: BadRoles,
    },
}

fn parse(text: &str) -> Result<Book, BadRoles> {
    let mut book = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let bad = |problem| BadRoles { line: at + 1, problem };
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<_> = line.split_whitespace().collect();
        let (name, role) = match words[..] {
            [] => continue,
            [name, role] => (name, role),
            _ => return Err(bad(BadLine::Words)),
        };
        let name: OperatorName = name.parse().map_err(|e| bad(BadLine::Name(e)))?;
        let role = [Role::Viewer, Role::Operator, Role::Admin].into_iter().find(|it| it.to_string() == role);
        if book.insert(name.clone(), role.ok_or_else(|| bad(BadLine::Role))?).is_some() {
            return Err(bad(BadLine::Twice(name)));
        }
    }
    Ok(Book(book))
}

/// Reads what a file of roles says; gives how many operators it names.
///
/// # Errors
/// [`BadRoles`].
pub fn read_roles(text: &str) -> Result<usize, BadRoles> {
    parse(text).map(|book| book.0.len())
}

/// The roles in a file.
///
/// # Errors
/// [`RolesError`].
pub(crate) fn read(path: &Path) -> Result<Book, RolesError> {
    let text = text(path).map_err(|source| RolesError::File { path: path.to_owned(), source })?;
    parse(&text).map_err(|bad| RolesError::Line { path: path.to_owned(), bad })
}

fn text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > LARGEST {
        return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
    }
    fs::read_to_string(path)
}

/// Reads the file again whenever it has changed, for as long as somebody asks for roles. One that cannot be used is told of
/// once, and the roles before it hold: a slip of an editor must not lock everybody out.
pub(crate) async fn follow(path: PathBuf, roles: watch::Sender<Book>) {
    let mut told = String::new();
    loop {
        tokio::select! {
            () = roles.closed() => return,
            () = time::sleep(LOOK_EVERY) => {}
        }
        match read(&path) {
            Ok(book) => {
                told.clear();
                if *roles.borrow() != book {
                    tracing::info!(path = %path.display(), changed = changes(&roles.borrow(), &book), "roles changed");
                    roles.send_replace(book);
                }
            }
            Err(error) => {
                let error = error.to_string();
                if told != error {
                    tracing::error!("{error}; the roles from before it hold");
                    told = error;
                }
            }
        }
    }
}

/// Who has another role now.
fn changes(before: &Book, after: &Book) -> String {
    let word = |role: Option<Role>| role.map_or_else(|| "none".to_owned(), |role| role.to_string());
    let mut words = String::new();
    let names: std::collections::BTreeSet<_> = before.0.keys().chain(after.0.keys()).collect();
    for name in names.into_iter().filter(|name| before.role(name) != after.role(name)) {
        let gap = if words.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(words, "{gap}{name}: {} to {}", word(before.role(name)), word(after.role(name)));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(book: &Book, name: &str) -> Option<Role> {
        book.role(&name.parse().unwrap())
    }

    #[test]
    fn names_roles_and_comments_are_read() {
        let book = parse("# who may what\n\nalice admin\n  bob\toperator # nights\ncarol viewer\r\n").unwrap();
        assert_eq!(role(&book, "alice"), Some(Role::Admin));
        assert_eq!(role(&book, "bob"), Some(Role::Operator));
        assert_eq!(role(&book, "carol"), Some(Role::Viewer));
        assert_eq!(role(&book, "dave"), None);
        assert_eq!(parse(""), Ok(Book::default()));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, line, words) in [
            ("alice", 1, "NAME ROLE"),
            ("\nalice admin please", 2, "NAME ROLE"),
            ("alice root", 1, "viewer, operator or admin"),
            ("alice Admin", 1, "viewer, operator or admin"),
            ("al/ice admin", 1, "the name has '/'"),
            ("alice admin\nbob viewer\nalice viewer", 3, "alice has a role already"),
        ] {
            let bad = parse(text).expect_err(text);
            assert_eq!(bad.line, line, "{text:?}");
            assert!(bad.to_string().contains(words), "{bad}");
        }
    }

    #[test]
    fn what_changed_is_told() {
        let (before, after) = (parse("alice admin\nbob viewer").unwrap(), parse("bob operator\ncarol viewer").unwrap());
        let told = changes(&before, &after);
        assert_eq!(told, "alice: admin to none, bob: viewer to operator, carol: none to viewer");
    }
}
