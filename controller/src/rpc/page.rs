//! Pages of a list. A token is opaque to callers: the list it belongs to, its filter, and where to go on.

use throughline_wire::{InvalidField, Problem};

const DEFAULT: usize = 100;
const MOST: u32 = 1000;
/// Stands between the parts; no name has it.
const SEPARATOR: char = '\n';

/// Where a list goes on and how far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    list: &'static str,
    filter: String,
    /// Key of the last entry of the page before.
    pub(crate) after: Option<String>,
    /// Most entries.
    pub(crate) size: usize,
}

impl Page {
    /// Checks what a caller asks for. `filter`: what the list was narrowed by, so that no token crosses over to another.
    pub(crate) fn of(list: &'static str, filter: &str, size: u32, token: &str) -> Result<Self, InvalidField> {
        if size > MOST {
            let range = Problem::Range { value: size.into(), least: 0, most: MOST.into(), unit: "entries a page" };
            return Err(InvalidField::new("page_size", range));
        }
        let size = if size == 0 { DEFAULT } else { size as usize };
        let after = if token.is_empty() { None } else { Some(decode(list, filter, token)?) };
        Ok(Self { list, filter: filter.to_owned(), after, size })
    }

    /// Where to go on, parsed.
    pub(crate) fn after<T: std::str::FromStr>(&self) -> Result<Option<T>, InvalidField> {
        self.after.as_ref().map(|after| after.parse().map_err(|_| invalid())).transpose()
    }

    /// The token of the next page, which goes on after `last`; empty if there is none.
    pub(crate) fn next(&self, last: Option<impl ToString>, more: bool) -> String {
        match last {
            Some(last) if more => encode(&[self.list, &self.filter, &last.to_string()].join(&SEPARATOR.to_string())),
            Some(_) | None => String::new(),
        }
    }
}

fn invalid() -> InvalidField {
    let words = "is not a token of this list; pass next_page_token of the page before, with the same filter";
    InvalidField::new("page_token", Problem::Other(words.to_owned()))
}

fn decode(list: &str, filter: &str, token: &str) -> Result<String, InvalidField> {
    let text = plain(token).ok_or_else(invalid)?;
    let mut parts = text.splitn(3, SEPARATOR);
    if parts.next() != Some(list) || parts.next() != Some(filter) {
        return Err(invalid());
    }
    parts.next().map(str::to_owned).ok_or_else(invalid)
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn plain(token: &str) -> Option<String> {
    if !token.len().is_multiple_of(2) || token.len() > 1024 || !token.is_ascii() {
        return None;
    }
    let bytes = (0..token.len()).step_by(2).map(|at| u8::from_str_radix(&token[at..at + 2], 16).ok());
    String::from_utf8(bytes.collect::<Option<_>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_where_the_page_ended() {
        let page = Page::of("guests", "h1", 2, "").unwrap();
        assert_eq!((page.size, &page.after), (2, &None));
        let token = page.next(Some("web-1"), true);
        assert_eq!(Page::of("guests", "h1", 0, &token).unwrap().after.as_deref(), Some("web-1"));
        assert_eq!(page.next(Some("web-1"), false), "");
    }

    #[test]
    fn other_lists_other_filters_and_garbage_are_refused() {
        let token = Page::of("guests", "h1", 2, "").unwrap().next(Some("web-1"), true);
        for (list, filter, token) in
            [("hosts", "h1", token.as_str()), ("guests", "h2", &token), ("guests", "h1", "zz"), ("guests", "h1", "äb")]
        {
            assert_eq!(Page::of(list, filter, 2, token).unwrap_err().field, "page_token");
        }
        assert_eq!(Page::of("guests", "", 1001, "").unwrap_err().field, "page_size");
    }
}
