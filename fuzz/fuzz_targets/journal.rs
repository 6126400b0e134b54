//! Whatever a crash left of an agent's journal: what is written after it is read back.

#![no_main]

use dwell::agent::journal::{Entry, Past, before_next, entries, past};
use dwell_core::protocol::{AgentPhase, AgentStatus};
use dwell_core::session::Ending;
use dwell_core::time::{Millis, Monotonic};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let left = entries(text);
    what_it_says_is_reported(&left);
    what_is_written_next_is_read_back(text, &left);
    a_torn_tail_costs_nothing_but_itself(text, &left);
});

fn what_it_says_is_reported(left: &[Entry]) {
    let proof = Some(Monotonic(u64::MAX));
    match past(left, proof) {
        Past::None => assert!(
            left.iter()
                .all(|entry| matches!(entry, Entry::Answered { .. })),
            "it began or ended and is not reported"
        ),
        Past::Over(status) => {
            let first_end = left.iter().find_map(|entry| match entry {
                Entry::Ended { status } => Some(status),
                Entry::Began { .. } | Entry::Answered { .. } => None,
            });
            match first_end {
                Some(ended) => assert_eq!(status, *ended, "another end is reported"),
                None => assert!(
                    matches!(status.phase, AgentPhase::Ended { .. }),
                    "an agent that died is not reported as ended"
                ),
            }
        }
    }
}

fn what_is_written_next_is_read_back(text: &[u8], left: &[Entry]) {
    // Text from outside within an entry must not break its line.
    let sentence = String::from_utf8_lossy(text).into_owned();
    let status = AgentStatus {
        held_ms: Millis(u64::MAX),
        granted_ms: Millis(text.len() as u64),
        phase: AgentPhase::Ended {
            ending: Ending::failed(sentence),
            running_ms: None,
        },
    };
    let written = [
        Entry::Began { at: Monotonic(7) },
        Entry::Answered { at: Monotonic(9) },
        Entry::Ended {
            status: status.clone(),
        },
    ];
    let mut longer = text.to_vec();
    longer.extend(before_next(text));
    for entry in &written {
        longer.extend(entry.line().expect("an entry can be said in JSON"));
    }
    assert_eq!(before_next(&longer), b"", "a whole line is not seen as one");
    let read = entries(&longer);
    assert_eq!(
        read[..left.len()],
        *left,
        "what was there is read otherwise"
    );
    assert_eq!(read[left.len()..], written, "what was written is not read");
    let had_ended = matches!(past(left, None), Past::Over(_))
        && left
            .iter()
            .any(|entry| matches!(entry, Entry::Ended { .. }));
    if !had_ended {
        assert_eq!(
            past(&read, None),
            Past::Over(status),
            "the end is not found"
        );
    }
}

fn a_torn_tail_costs_nothing_but_itself(text: &[u8], left: &[Entry]) {
    // Where it is torn follows from the input, so that a finding can be repeated.
    let torn_at = text
        .first()
        .map_or(0, |at| usize::from(*at) % (text.len() + 1));
    let torn = &text[..torn_at];
    let whole_lines = torn.iter().filter(|byte| **byte == b'\n').count();
    let kept = entries(torn);
    assert!(left.len() >= kept.len().saturating_sub(1));
    let whole = text
        .split_inclusive(|byte| *byte == b'\n')
        .take(whole_lines);
    let whole: Vec<Entry> = whole.flat_map(entries).collect();
    assert!(kept.starts_with(&whole), "a whole line was lost");
}
