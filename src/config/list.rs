//! List files: one peer id, IP address or CIDR a line, `#` starts a comment.
//!
//! A line that is no entry is shown only where it begins like one: the file may be anything.

use std::sync::Arc;

use super::{
    diagnostic::{Code, Diagnostic, Excerpt, Location},
    names::PeerOrNetwork,
};
use crate::{
    acl::{Action, Entries, Entry},
    id::Origin,
};

/// Lines of a list file, so that compiling it stays within two seconds and 200 MB.
pub const MOST_LINES: usize = 1_000_000;

/// Bad lines of one list that are reported one by one.
const MOST_FAULTS: usize = 10;

/// One list: its name in the configuration, and its file as the operator would open it.
pub struct List<'a> {
    pub name: Arc<str>,
    pub file: Arc<str>,
    pub action: Action,
    pub bytes: &'a [u8],
}

impl List<'_> {
    /// Appends the entries, and says how many they were.
    pub fn read(&self, entries: &mut Entries, found: &mut Vec<Diagnostic>) -> usize {
        let before = entries.len();
        let mut faults = 0usize;
        for (number, line) in lines(self.bytes) {
            if number as usize > MOST_LINES {
                found.push(
                    Diagnostic::new(Code::TooLarge, "the list has more lines than are read")
                        .in_file(&*self.file)
                        .expected("at most 1,000,000 lines")
                        .help("split the list, or replace single addresses by CIDRs"),
                );
                break;
            }
            match entry(line) {
                Ok(None) => {}
                Ok(Some((_, subject))) => entries.push(
                    self.action,
                    Entry {
                        subject: subject.0,
                        list: Some(self.name.clone()),
                        origin: Origin::File {
                            file: self.file.clone(),
                            line: number,
                        },
                    },
                ),
                Err(fault) => {
                    faults += 1;
                    if faults <= MOST_FAULTS {
                        found.push(self.fault(number, line, fault));
                    }
                }
            }
        }
        if faults > MOST_FAULTS {
            let rest = faults - MOST_FAULTS;
            found.push(
                Diagnostic::new(Code::ListEntry, format!("{rest} more lines are no entries"))
                    .in_file(&*self.file),
            );
        }
        entries.len() - before
    }

    fn fault(&self, number: u32, line: &[u8], fault: String) -> Diagnostic {
        let indent = line
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        let shown = word(&self.file, self.bytes, number, line, indent).filter(is_meant_as_entry);
        let place = shown.map(|shown| Location {
            label: fault.clone(),
            ..shown
        });
        let nothing_shown = || Location {
            file: self.file.to_string(),
            line: number,
            column: u32::try_from(indent).unwrap_or(u32::MAX).saturating_add(1),
            start: 0,
            end: 0,
            label: String::new(),
            excerpt: None,
        };
        let message = match &place {
            Some(_) => "this line is no entry".to_owned(),
            None => format!("this line is no entry: {fault}"),
        };
        Diagnostic::new(Code::ListEntry, message)
            .at(place.unwrap_or_else(nothing_shown))
            .expected("a peer id, an IP address or a CIDR; # starts a comment")
            .help("correct the line, or begin it with #")
    }
}

/// The place of an entry that is known to stand on this line. Shows the entry and nothing else of the line.
pub fn place(file: &str, bytes: &[u8], number: u32) -> Option<Location> {
    let (_, line) = lines(bytes).nth((number as usize).checked_sub(1)?)?;
    let (column, _) = entry(line).ok()??;
    word(file, bytes, number, line, column)
}

/// The place of the word that begins at `column` of a line of `bytes`, with that word as its excerpt.
fn word(file: &str, bytes: &[u8], number: u32, line: &[u8], column: usize) -> Option<Location> {
    let indent = std::str::from_utf8(line.get(..column)?).ok()?;
    let end = line
        .iter()
        .skip(column)
        .position(|byte| byte.is_ascii_whitespace() || *byte == b'#');
    let end = end.map_or(line.len(), |length| column + length);
    let text = std::str::from_utf8(line.get(column..end)?).ok()?;
    let start = (line.as_ptr() as usize).checked_sub(bytes.as_ptr() as usize)?;
    Some(Location {
        file: file.to_owned(),
        line: number,
        column: u32::try_from(column).unwrap_or(u32::MAX).saturating_add(1),
        start: start + column,
        end: start + column + text.len(),
        label: String::new(),
        excerpt: Some(Excerpt {
            text: format!("{indent}{text}"),
            offset: start,
        }),
    })
}

/// Whether the word of this place can only be a peer id, an address or a CIDR that went wrong. A password file, a key or a
/// token named by mistake does not begin like that, and its lines stay out of terminals and logs.
fn is_meant_as_entry(place: &Location) -> bool {
    const PEER_IDS: [&str; 6] = ["12D3KooW", "Qm", "16Uiu2HA", "bafz", "k51", "k2k4"];
    const LONGEST: usize = 80;
    let Some(excerpt) = &place.excerpt else {
        return false;
    };
    let word = excerpt.text.trim_ascii_start();
    let like_a_peer = PEER_IDS.iter().any(|start| word.starts_with(start))
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let like_an_address = word.contains(['.', ':'])
        && word
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || b".:/".contains(&byte));
    word.len() <= LONGEST && (like_a_peer || like_an_address)
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    (1..).zip(bytes.split(|byte| *byte == b'\n'))
}

/// The entry on a line and the column where it begins, if there is one.
fn entry(line: &[u8]) -> Result<Option<(usize, PeerOrNetwork)>, String> {
    let end = line
        .iter()
        .position(|byte| *byte == b'#')
        .unwrap_or(line.len());
    let line = line.get(..end).unwrap_or(line);
    let Ok(text) = std::str::from_utf8(line) else {
        return Err("not UTF-8".to_owned());
    };
    let trimmed = text.trim_ascii();
    if trimmed.is_empty() {
        return Ok(None);
    }
    if trimmed.contains([' ', '\t']) {
        return Err("more than one word".to_owned());
    }
    let column = text.len() - text.trim_ascii_start().len();
    match trimmed.parse() {
        Ok(subject) => Ok(Some((column, subject))),
        Err(fault) => Err(super::literal::Fault::to_string(&fault)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn read(bytes: &[u8]) -> (Entries, Vec<Diagnostic>) {
        let list = List {
            name: "ops".into(),
            file: "ops.txt".into(),
            action: Action::Allow,
            bytes,
        };
        let (mut entries, mut found) = (Entries::default(), Vec::new());
        list.read(&mut entries, &mut found);
        (entries, found)
    }

    #[test]
    fn entries_stand_one_a_line_between_comments() {
        let text = format!("\u{feff}# ops\r\n{PEER}  # jump host\r\n\r\n  10.0.0.0/8\n2001:db8::1");
        let (entries, found) = read(text.as_bytes());
        assert_eq!(found, []);
        let lines: Vec<_> = entries
            .iter()
            .map(|(_, entry)| entry.origin.to_string())
            .collect();
        assert_eq!(lines, ["ops.txt:2", "ops.txt:4", "ops.txt:5"]);
    }

    #[test]
    fn what_is_no_entry_is_named_by_line_and_never_shown() {
        let (entries, found) = read(b"root:$6$secret:19000\n\xff\xfe\n10.0.0.0/8\ntwo words\n");
        assert_eq!(entries.len(), 1);
        let lines: Vec<_> = found
            .iter()
            .map(|found| found.location.as_ref().map(|at| at.line))
            .collect();
        assert_eq!(lines, [Some(1), Some(2), Some(4)]);
        assert!(!format!("{found:?}").contains("secret"));
    }

    #[test]
    fn a_mistyped_entry_is_shown_without_its_comment() {
        let (_, found) = read(b"12D3KooWbroken # jump host\n10.0.0.0/33\n");
        let shown: Vec<_> = found
            .iter()
            .filter_map(|found| Some(&found.location.as_ref()?.excerpt.as_ref()?.text))
            .collect();
        assert_eq!(shown, ["12D3KooWbroken", "10.0.0.0/33"]);
    }

    #[test]
    fn a_file_full_of_nonsense_is_summed_up() {
        let (_, found) = read(&b"nonsense\n".repeat(5000));
        assert_eq!(found.len(), MOST_FAULTS + 1);
        assert_eq!(
            found.last().map(|last| last.message.as_str()),
            Some("4990 more lines are no entries")
        );
    }

    #[test]
    fn a_line_beyond_the_last_is_refused() {
        let (entries, found) = read(&b"10.0.0.1\n".repeat(MOST_LINES + 1));
        assert_eq!(entries.len(), MOST_LINES);
        assert_eq!(found.first().map(|found| found.code), Some(Code::TooLarge));
    }

    #[test]
    fn the_place_of_an_entry_shows_the_entry_alone() {
        let text = format!("# x\n  {PEER} # jump host of somebody\n");
        let place = place("ops.txt", text.as_bytes(), 2).expect("an entry");
        assert_eq!((place.line, place.column), (2, 3));
        assert_eq!(place.excerpt.expect("shown").text.trim_start(), PEER);
    }
}
