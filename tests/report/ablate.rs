//! The page of `tandem bench ablate`.

use std::sync::LazyLock;

use serde::Deserialize;
use tandem::bench::ablate::summary::Summary;
use tandem::bench::ablate::{Ablation, Omitted, Side, Step};
use tandem::bench::model::{Kind, Results};
use tandem::report::html;
use tandem::report::number::{self, MILLISECOND};

use crate::fixture::{MODELS, Model, fail, results};
use crate::{HOSTILE, parsed, text_of};

/// A step: name, whose, compared with, milliseconds until the end.
type Described = (&'static str, Side, Option<&'static str>, &'static [(&'static str, f64)]);

const STEPS: [Described; 11] = [
    ("process", Side::Container, None, &[("reaped", 0.9)]),
    ("pid+mnt", Side::Container, Some("process"), &[("reaped", 2.6)]),
    ("+uts", Side::Container, Some("pid+mnt"), &[("reaped", 2.6)]),
    ("+net", Side::Container, Some("+uts"), &[("reaped", 3.9)]),
    ("+seccomp", Side::Container, Some("+net"), &[("reaped", 4.8)]),
    ("-capabilities", Side::Container, Some("+seccomp"), &[("reaped", 4.0)]),
    ("vm", Side::Vm, None, &[("reaped", 42.0)]),
    ("verbose", Side::Vm, Some("vm"), &[("reaped", 55.0)]),
    ("isolation-off", Side::Vm, Some("vm"), &[("reaped", 36.0)]),
    ("standard-guest", Side::Vm, Some("vm"), &[("reaped", 9000.0)]),
    ("bzimage", Side::Vm, Some("standard-guest"), &[("reaped", 11000.0)]),
];

/// A bench of steps and its page.
pub struct Case {
    pub name: &'static str,
    bench: Results,
    ablation: Ablation,
    pub page: String,
}

/// All pages, made once.
pub static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let (bench, ablation) = usual(30);
    let case = |name, bench: &Results, ablation: &Ablation| {
        let page = html::ablate::render(bench, ablation, &Summary::of(bench, ablation));
        Case { name, bench: bench.clone(), ablation: ablation.clone(), page }
    };
    let without = |names: &[&str]| {
        let mut bench = bench.clone();
        for sample in bench.samples.iter_mut().filter(|sample| names.contains(&&*sample.contestant)) {
            sample.failure = Some("exit status 125".to_owned());
        }
        bench
    };
    let all: Vec<&str> = STEPS.iter().map(|(name, ..)| *name).collect();
    let (two, _) = usual(2);
    let (mut hostile, mut text) = (bench.clone(), ablation.clone());
    hostile.settings.command = vec![HOSTILE.to_owned()];
    hostile.contestants.iter_mut().for_each(|info| info.name += HOSTILE);
    hostile.samples.iter_mut().for_each(|sample| sample.contestant += HOSTILE);
    for step in &mut text.steps {
        step.name += HOSTILE;
        step.what += HOSTILE;
        step.against = step.against.take().map(|name| name + HOSTILE);
    }
    text.omitted.push(Omitted { name: HOSTILE.to_owned(), reason: HOSTILE.to_owned() });
    vec![
        case("ablate-usual", &bench, &ablation),
        case("ablate-hostile", &hostile, &text),
        case("ablate-two-runs", &two, &ablation),
        case("ablate-no-base", &without(&["vm", "process", "+uts"]), &ablation),
        case("ablate-failed", &without(&all), &ablation),
        case("ablate-nothing", &bench, &Ablation::default()),
    ]
});

fn usual(runs: u32) -> (Results, Ablation) {
    let model = |(name, side, _, milestones): Described| Model {
        name,
        kind: if side == Side::Vm { Kind::Vm } else { Kind::Container },
        milestones,
        ..MODELS[0]
    };
    let mut bench = results(&STEPS.map(model), runs);
    fail(&mut bench, "+net", 1, "exit status 125: no network");
    let steps = STEPS.iter().map(|(name, side, against, _)| Step {
        name: (*name).to_owned(),
        side: *side,
        what: format!("what {name} is"),
        against: against.map(str::to_owned),
    });
    let omitted =
        vec![Omitted { name: "huge pages".to_owned(), reason: "not an option of Tandem yet".to_owned() }];
    (bench, Ablation { steps: steps.collect(), omitted })
}

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).expect("a case")
}

fn of_class<'a>(document: &'a roxmltree::Document<'_>, class: &str) -> Vec<roxmltree::Node<'a, 'a>> {
    let has = |node: &roxmltree::Node<'_, '_>| {
        node.attribute("class").is_some_and(|classes| classes.split(' ').any(|one| one == class))
    };
    document.descendants().filter(has).collect()
}

#[test]
fn every_step_has_its_bar_its_figures_and_its_words() {
    let Case { bench, ablation, page, .. } = case("ablate-usual");
    let summary = Summary::of(bench, ablation);
    parsed(page, |document| {
        let whole = text_of(document.root());
        for row in &summary.steps {
            assert!(whole.contains(&row.what), "{}", row.name);
            let median = number::figure(row.time.map(|time| time.value), MILLISECOND);
            assert!(whole.contains(&median), "{}: {median}", row.name);
            if row.against.is_some() {
                let difference = number::difference(row.time_difference, MILLISECOND);
                assert!(whole.contains(&difference), "{}: {difference}", row.name);
            }
        }
        assert!(whole.contains("huge pages") && whole.contains("not an option of Tandem yet"));
        assert!(whole.contains("round 1 failed") && whole.contains("exit status 125: no network"));
        // The container's steps and all of them; the changes of the VM and of the standard guest; two keys of three, and
        // one more for the guest's.
        assert_eq!(of_class(document, "step").len(), 6 + 1 + 3 + 1 + 3 * 3);
        // What would leave no room for the others is not drawn to its end, which is told.
        let told = of_class(document, "beyond").iter().map(|node| text_of(*node)).collect::<Vec<_>>();
        assert!(matches!(told.as_slice(), [one] if one.starts_with("the bar goes on: 9,")), "{told:?}");
    });
}

#[test]
fn a_step_begins_where_the_one_before_ends() {
    let Case { page, .. } = case("ablate-usual");
    parsed(page, |document| {
        let place = |node: &roxmltree::Node<'_, '_>, name: &str| -> f64 {
            let value = node.attribute(name).and_then(|value| value.strip_suffix('%')).expect("per cent");
            value.parse().expect("a number")
        };
        let bars = of_class(document, "step");
        let bars: Vec<_> =
            bars.iter().filter(|bar| bar.attribute("x").is_some_and(|x| x.ends_with('%'))).collect();
        let [process, barest, ..] = bars.as_slice() else { panic!("bars") };
        assert_eq!(place(process, "x"), 0.0);
        assert!((place(barest, "x") - place(process, "width")).abs() < 0.02);
        assert!(place(barest, "width") > place(process, "width"));
    });
}

#[test]
fn the_headline_says_no_more_than_the_figures() {
    let headline = |name: &str| {
        parsed(&case(name).page, |document| text_of(*of_class(document, "headline").first().expect("one")))
    };
    let usual = headline("ablate-usual");
    assert!(
        usual.contains("ms in a container with all layers up to +seccomp; of 5 steps pid+mnt costs most, 1.")
    );
    assert!(usual.contains("-capabilities saves most"), "{usual}");
    assert!(usual.contains("of 4 changes standard-guest costs most, 9,"), "{usual}");
    let few = headline("ablate-two-runs");
    assert!(few.contains("of 5 steps none shows a difference"), "{few}");
    assert!(headline("ablate-failed").contains("there are no figures to show"));
    assert!(headline("ablate-nothing").contains("there are no figures to show"));
}

#[test]
fn what_has_nothing_to_be_compared_with_is_told() {
    parsed(&case("ablate-no-base").page, |document| {
        let reasons: Vec<_> = of_class(document, "absent").iter().map(|node| text_of(*node)).collect();
        assert!(
            reasons.iter().any(|reason| reason.contains("32 failed") || reason.contains("30 failed")),
            "{reasons:?}"
        );
        assert!(reasons.iter().any(|reason| reason.contains("no round has both")), "{reasons:?}");
        let figures: Vec<_> = of_class(document, "figure").iter().map(|node| text_of(*node)).collect();
        assert!(figures.iter().any(|figure| figure == "n/a"));
    });
}

#[test]
fn the_data_can_be_taken_out_again() {
    #[derive(Deserialize)]
    struct Data {
        ablation: Ablation,
    }
    for Case { name, bench, ablation, page } in CASES.iter() {
        parsed(page, |document| {
            let script = document.descendants().find(|node| node.attribute("id") == Some("tandem-bench"));
            let json = script.and_then(|node| node.text()).expect("data");
            assert_eq!(serde_json::from_str::<Results>(json).expect("JSON"), *bench, "{name}");
            assert_eq!(serde_json::from_str::<Data>(json).expect("JSON").ablation, *ablation, "{name}");
        });
    }
}
