//! The HTML report as readers and browsers get it. The pages are left in `target/tmp/report` to be looked at.

#![allow(clippy::expect_used)] // a test that cannot go on panics

mod ablate;
mod fixture;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use roxmltree::{Document, Node, ParsingOptions};
use tandem::bench::model::{Kind, Results};
use tandem::bench::summary::Summary;
use tandem::report::html;

use fixture::{MODELS, Model, results, usual};

/// Text that tries to leave whatever it is put into.
const HOSTILE: &str = "</script></style></title><script>alert(1)</script><img src=//evil.example/x onerror=alert(1)> \
                       \" onload=\"alert(1) ' & &lt; <!-- ]]> {{x}} \u{1b}[31m \u{202e} \u{0} \u{7f} \u{2028}";

/// A bench and its page.
struct Case {
    name: &'static str,
    bench: Results,
    page: String,
}

/// All pages, made once: each takes some ten thousands of resamples.
static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let benches = [
        ("usual", usual()),
        ("hostile", hostile()),
        ("alone", results(&MODELS[6..], 30)),
        ("two-runs", results(&MODELS, 2)),
        ("silent", silent()),
        ("failed", failed()),
        ("nothing", nothing()),
        ("long", long()),
        ("many", many()),
        ("alike", alike()),
    ];
    benches.into_iter().map(|(name, bench)| Case { name, page: render(&bench), bench }).collect()
});

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).expect("a case")
}

fn hostile() -> Results {
    let mut bench = usual();
    let text = || HOSTILE.to_owned();
    bench.settings.command = vec![text(), text()];
    bench.settings.root = text();
    bench.settings.baseline = text();
    bench.began = text();
    bench.tandem = text();
    bench.schema = text();
    bench.warnings.push(text());
    bench.environment.0.push((text(), text()));
    fixture::fail(&mut bench, "runc", 3, HOSTILE);
    for info in &mut bench.contestants {
        info.command_line = text();
        info.version = Some(text());
        info.notes.push(text());
        info.skipped = info.skipped.as_ref().map(|_| text());
        if info.name == "namespaces" {
            info.name = text();
        }
    }
    for sample in bench.samples.iter_mut().filter(|sample| sample.contestant == "namespaces") {
        sample.contestant = text();
        sample.exits.insert(text(), 3);
        sample.milestones.insert(text(), 3);
    }
    for sample in bench.memory.iter_mut().filter(|sample| sample.contestant == "crun") {
        sample.failure = Some(text());
        sample.moment = text();
    }
    bench
}

fn silent() -> Results {
    let mut bench = results(&MODELS, 12);
    bench.settings.command = vec!["/bin/true".to_owned()];
    for sample in &mut bench.samples {
        sample.milestones.remove("first_output");
        sample.output_bytes = 0;
    }
    bench
}

fn failed() -> Results {
    let mut bench = usual();
    for sample in &mut bench.samples {
        sample.failure = Some("exit status 127: /bin/unmae: not found in the root file system".to_owned());
        sample.milestones.clear();
    }
    for sample in &mut bench.memory {
        sample.failure = Some("the run failed".to_owned());
        (sample.pss, sample.pss_guest, sample.cgroup_peak) = (None, None, None);
    }
    bench.interrupted = true;
    bench
}

fn nothing() -> Results {
    let mut bench = results(&[], 10);
    bench.environment.0.clear();
    bench
}

fn long() -> Results {
    let mut bench = results(&MODELS[1..3], 10);
    let words = (0..200).map(|n| format!("--a-long-option-{n}=with/a/value/that/goes/on/and/on"));
    bench.settings.command = std::iter::once("/usr/bin/program".to_owned()).chain(words).collect();
    for info in &mut bench.contestants {
        info.command_line = bench.settings.command.join(" ") + &"x".repeat(3000);
    }
    bench
}

fn many() -> Results {
    const NAMES: [&str; 15] = [
        "process",
        "namespaces",
        "unshare",
        "bwrap",
        "crun",
        "youki",
        "runc",
        "podman",
        "docker",
        "vm",
        "vm-standard",
        "qemu-microvm",
        "firecracker",
        "cloud-hypervisor",
        "a-contestant-with-quite-a-long-name",
    ];
    let models = NAMES.iter().enumerate().map(|(place, name)| Model { name, ..MODELS[place % 7] });
    results(&models.collect::<Vec<_>>(), 160)
}

/// Two of the same speed: the report must not name a winner.
fn alike() -> Results {
    let vm = Model { name: "vm", kind: Kind::Vm, ..MODELS[1] };
    results(&[MODELS[1], vm], 30)
}

/// The page of a bench.
fn render(bench: &Results) -> String {
    html::render(bench, &Summary::of(bench))
}

/// The page as XML, which HTML of this kind is but for its first line and its open `meta`.
fn parsed<R>(page: &str, look: impl FnOnce(&Document<'_>) -> R) -> R {
    let (head, body) = page.split_once("</title>").expect("a title");
    let head = head.replacen("<!DOCTYPE html>", "", 1).replace("\"><meta ", "\"/><meta ");
    let text = head.replace("\"><title>", "\"/><title>") + "</title>" + body;
    let options = ParsingOptions { nodes_limit: 1_000_000, ..ParsingOptions::default() };
    look(&Document::parse_with_options(&text, options).expect("well-formed"))
}

/// All text in a node.
fn text_of(node: Node<'_, '_>) -> String {
    node.descendants().filter_map(|node| node.is_text().then(|| node.text())?).collect()
}

/// The pages of all benches, with their names.
fn pages() -> impl Iterator<Item = (&'static str, &'static str)> {
    let bench = CASES.iter().map(|case| (case.name, case.page.as_str()));
    bench.chain(ablate::CASES.iter().map(|case| (case.name, case.page.as_str())))
}

#[test]
fn pages_are_well_formed_and_load_nothing() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    std::fs::create_dir_all(&directory).expect("a directory");
    for (name, page) in pages() {
        std::fs::write(directory.join(format!("{name}.html")), page).expect("written");
        parsed(page, |document| {
            for element in document.descendants().filter(|node| node.is_element()) {
                let tag = element.tag_name().name();
                assert!(
                    !["img", "link", "iframe", "object", "embed", "base", "form", "image"].contains(&tag),
                    "{name}: {tag}"
                );
                if tag == "script" {
                    assert_eq!(element.attribute("type"), Some("application/json"), "{name}");
                }
                for attribute in element.attributes() {
                    assert!(!attribute.name().starts_with("on"), "{name}: {attribute:?}");
                    if ["href", "src", "action", "data", "srcset"].contains(&attribute.name()) {
                        let value = attribute.value();
                        assert!(value.starts_with('#') || value.starts_with("data:application/json;base64,"));
                    }
                }
            }
            let styles = document.descendants().filter(|node| node.has_tag_name("style"));
            for style in styles {
                let text = style.text().unwrap_or_default();
                assert!(!text.contains("@import") && !text.contains("//"), "{name}");
                assert!(text.split("url(").skip(1).all(|url| url.starts_with('#')), "{name}");
            }
        });
    }
}

#[test]
fn every_reference_and_image_is_complete() {
    for (name, page) in pages() {
        parsed(page, |document| {
            let elements = || document.descendants().filter(|node| node.is_element());
            let all: Vec<_> = elements().filter_map(|node| node.attribute("id")).collect();
            let ids: BTreeSet<_> = all.iter().copied().collect();
            assert_eq!(all.len(), ids.len(), "{name}: an id is given twice");
            for node in elements() {
                let labels = node.attribute("aria-labelledby").unwrap_or_default().split_whitespace();
                let target = node.attribute("href").and_then(|href| href.strip_prefix('#'));
                for id in labels.chain(target) {
                    assert!(ids.contains(id), "{name}: {id}");
                }
                if node.attribute("role") == Some("img") {
                    for part in ["title", "desc"] {
                        let child = node.children().find(|child| child.has_tag_name(part));
                        assert!(
                            child.and_then(|child| child.text()).is_some(),
                            "{name}: an image without {part}"
                        );
                    }
                } else if node.has_tag_name("svg") {
                    assert!(node.ancestors().any(|node| node.attribute("aria-hidden") == Some("true")));
                } else if node.has_tag_name("th") {
                    assert!(node.attribute("scope").is_some(), "{name}");
                }
            }
        });
    }
}

#[test]
fn foreign_text_stays_text() {
    for (_, page) in pages().filter(|(name, _)| name.ends_with("hostile")) {
        is_text(page);
    }
}

fn is_text(page: &str) {
    parsed(page, |document| {
        let count = |tag| document.descendants().filter(|node| node.has_tag_name(tag)).count();
        assert_eq!((count("script"), count("style"), count("img")), (1, 1, 0));
        let text: String = document.descendants().filter_map(|node| node.text()).collect();
        assert!(text.contains("<img src=//evil.example/x onerror=alert(1)>"));
        assert!(text.contains("\\u{202e}") && text.contains("\\u{1b}[31m"));
    });
    let deceptive =
        |character: &char| character.is_control() && *character != '\n' || *character == '\u{202e}';
    assert_eq!(page.chars().find(deceptive), None);
}

#[test]
fn the_data_can_be_taken_out_again() {
    for Case { name, bench, page } in CASES.iter() {
        parsed(page, |document| {
            let script = document.descendants().find(|node| node.attribute("id") == Some("tandem-bench"));
            let json = script.and_then(|node| node.text()).expect("data");
            assert_eq!(serde_json::from_str::<Results>(json).expect("JSON"), *bench, "{name}");
            let link =
                document.descendants().find(|node| node.attribute("download").is_some()).expect("a link");
            let address = link.attribute("href").expect("an address");
            let data = address.strip_prefix("data:application/json;base64,").expect("data");
            let json =
                base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).expect("base64");
            assert_eq!(serde_json::from_slice::<Results>(&json).expect("JSON"), *bench, "{name}");
        });
    }
}

#[test]
fn every_contestant_run_failure_and_warning_is_there() {
    let Case { bench, page, .. } = case("usual");
    parsed(page, |document| {
        let text = |class: &str| -> Vec<String> {
            let nodes = document.descendants().filter(|node| node.attribute("class") == Some(class));
            nodes.map(text_of).collect()
        };
        let names = text("name");
        let whole = text_of(document.root());
        for info in &bench.contestants {
            let places = names.iter().filter(|name| **name == info.name).count();
            assert!(places >= if info.skipped.is_some() { 2 } else { 5 }, "{}: {places}", info.name);
            assert!(whole.contains(&info.command_line));
            assert!(info.skipped.as_ref().is_none_or(|reason| whole.contains(reason)));
        }
        for failure in bench.samples.iter().filter_map(|sample| sample.failure.as_ref()) {
            assert!(whole.contains(failure));
        }
        assert!(whole.contains("rounds 11, 19 failed"));
        assert!(bench.warnings.iter().all(|warning| whole.contains(warning)));
        assert!(
            bench.environment.0.iter().all(|(name, value)| whole.contains(name) && whole.contains(value))
        );
        let plots = document.descendants().filter(|node| node.attribute("role") == Some("img"));
        let marks = plots.flat_map(|plot| plot.descendants()).filter(|node| node.has_tag_name("use")).count();
        assert_eq!(marks, 7 * 30 - 3);
    });
}

#[test]
fn the_same_results_give_the_same_page() {
    assert_eq!(render(&alike()), case("alike").page);
}

#[test]
fn the_headline_says_no_more_than_the_figures() {
    let headline = |name: &str| {
        parsed(&case(name).page, |document| {
            let node =
                document.descendants().find(|node| node.attribute("class") == Some("headline")).expect("one");
            text_of(node)
        })
    };
    let sentence = headline("usual");
    assert!(sentence.starts_with("/bin/uname -a takes "), "{sentence}");
    assert!(sentence.contains("the VM takes 12."), "{sentence}");
    assert!(headline("long").contains("crun takes 5."));
    assert!(headline("two-runs").contains("too few rounds for an interval"));
    assert!(headline("alike").contains("no difference shown"));
    assert!(headline("failed").contains("no figures"));
    assert!(headline("nothing").contains("no figures"));
    assert!(!headline("alone").contains("times"));
}
