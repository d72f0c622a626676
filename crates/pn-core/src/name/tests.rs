use proptest::prelude::*;

use super::*;

const APP: &str = "ap-6f7d6a1e-3f0e-4b4e-9d4c-0d9a3c1b2e4f";
const NET: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";

fn refused(text: &str) -> NameError {
    let error = text.parse::<Name>().expect_err(text);
    assert!(error.to_string().contains(&format!("{text:?}")), "{error} does not name {text:?}");
    error
}

#[test]
fn the_three_forms_parse_and_print() {
    for (text, scope) in [
        (format!("{APP}.{NET}.{SUFFIX}"), NameScope::App),
        (format!("web.{APP}.{NET}.{SUFFIX}"), NameScope::Type(ContainerType::web())),
        (format!("1.{APP}.{NET}.{SUFFIX}"), NameScope::Type("1".parse().unwrap())),
        (format!("12.web.{APP}.{NET}.{SUFFIX}"), NameScope::Container(ContainerType::web(), 12)),
        (format!("4294967295.7.{APP}.{NET}.{SUFFIX}"), NameScope::Container("7".parse().unwrap(), u32::MAX)),
    ] {
        let name: Name = text.parse().unwrap();
        assert_eq!(name.scope(), scope);
        assert_eq!((name.app_id().to_string(), name.network().to_string()), (APP.to_owned(), NET.to_owned()));
        assert_eq!(name.to_string(), text);
        assert_eq!(format!("{name:#}"), format!("{text}."));
        assert_eq!(format!("{text}.").parse::<Name>().unwrap(), name);
        assert_eq!(text.to_uppercase().parse::<Name>().unwrap(), name, "D8");
    }
}

#[test]
fn the_two_forms_above_them_parse_and_print() {
    let text = format!("{NET}.{SUFFIX}");
    let domain: NetworkDomain = text.parse().unwrap();
    assert_eq!(domain.to_string(), text);
    assert_eq!(format!("{domain:#}"), format!("{text}."));
    assert_eq!(format!("{}.", text.to_uppercase()).parse::<NetworkDomain>().unwrap(), domain);
    assert!(matches!(SUFFIX.parse::<NetworkDomain>(), Err(NameError::Suffix { .. })));
    assert!(matches!(format!("{APP}.{SUFFIX}").parse::<NetworkDomain>(), Err(NameError::Network { .. })));
    assert!(matches!(format!("{text}.com").parse::<NetworkDomain>(), Err(NameError::Suffix { .. })));
}

#[test]
fn d9_everything_else_is_refused_with_its_reason() {
    let longest = "a".repeat(64);
    assert!(matches!(refused(&format!("{NET}.{SUFFIX}")), NameError::Labels { found: 3, .. }));
    assert!(matches!(refused(SUFFIX), NameError::Labels { found: 2, .. }));
    assert!(matches!(refused(&format!("x.1.web.{APP}.{NET}.{SUFFIX}")), NameError::Labels { found: 7, .. }));
    for text in ["", ".", "..", "example.com", "private-network", &format!("{APP}.{NET}.{SUFFIX}..")] {
        assert!(matches!(refused(text), NameError::Suffix { .. } | NameError::Labels { .. }), "{text}");
    }
    assert!(matches!(refused(&format!("{APP}.{NET}.private-network.example")), NameError::Suffix { .. }));
    assert!(matches!(refused(&format!("{APP}.{NET}.xprivate-network.internal")), NameError::Suffix { .. }));
    assert!(matches!(refused(&format!("{NET}.{APP}.{SUFFIX}")), NameError::Network { .. }), "ap- and pn- swapped");
    assert!(matches!(refused(&format!("{APP}.pn-ad0fd6a1.{SUFFIX}")), NameError::Network { .. }));
    assert!(matches!(refused(&format!("web.{NET}.{SUFFIX}")), NameError::App { .. }));
    assert!(matches!(refused(&format!("1.web.ap-x.{NET}.{SUFFIX}")), NameError::App { .. }));
    for label in ["", "-web", "we_b", &longest] {
        assert!(matches!(refused(&format!("{label}.{APP}.{NET}.{SUFFIX}")), NameError::Type { .. }), "{label}");
    }
    for label in ["0", "01", "+1", "-1", "", "1a", "4294967296", "99999999999", "１"] {
        let text = format!("{label}.web.{APP}.{NET}.{SUFFIX}");
        assert!(matches!(refused(&text), NameError::Index { label: found, .. } if found == label), "{label}");
    }
}

#[test]
fn the_longest_name_is_a_domain_name() {
    let slot = Slot::new(AppId::from_u128(u128::MAX), "x".repeat(63).parse().unwrap(), u32::MAX).unwrap();
    let name = Name::container(NetworkId::from_u128(u128::MAX), &slot);
    assert_eq!(name.to_string().len(), Name::MAX_LEN);
    const { assert!(Name::MAX_LEN <= 253, "RFC 1035 §2.3.4") };
}

prop_compose! {
    fn names()(
        network: u128,
        app: u128,
        container_type in "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?",
        index in 1u32..,
        form in 0..3,
    ) -> Name {
        let (network, app) = (NetworkId::from_u128(network), AppId::from_u128(app));
        let container_type: ContainerType = container_type.parse().unwrap();
        match form {
            0 => Name::app(network, app),
            1 => Name::of_type(network, app, container_type),
            _ => Name::container(network, &Slot::new(app, container_type, index).unwrap()),
        }
    }
}

proptest! {
    #[test]
    fn name_to_text_to_name(name in names()) {
        prop_assert_eq!(name.to_string().parse::<Name>().unwrap(), name);
        prop_assert_eq!(format!("{name:#}").parse::<Name>().unwrap(), name);
    }

    #[test]
    fn text_to_name_to_text(name in names()) {
        let text = name.to_string();
        prop_assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
    }

    /// Random edits of a good name: whatever still parses prints as the same labels, but for case and the final dot.
    #[test]
    fn edited_text_parses_faithfully_or_not_at_all(name in names(), at: prop::sample::Index, to in "[-.0-9a-zA-Z_+é]") {
        let mut text = name.to_string();
        let at = at.index(text.len());
        text.replace_range(at..=at, &to);
        if let Ok(parsed) = text.parse::<Name>() {
            let relative = text.strip_suffix('.').unwrap_or(&text);
            prop_assert!(parsed.to_string().eq_ignore_ascii_case(relative));
        }
    }

    /// The parser that finds labels by their lengths agrees with the one that takes them one by one.
    #[test]
    fn both_parsers_agree(name in names(), edits in prop::collection::vec((any::<prop::sample::Index>(), "[-.0-9a-zA-Z_]?"), 0..3)) {
        let mut text = name.to_string();
        for (at, to) in edits {
            let at = at.index(text.len());
            text.replace_range(at..=at, &to);
        }
        let relative = text.strip_suffix('.').unwrap_or(&text);
        let labels = Name::from_labels(relative.split('.').map(str::as_bytes));
        prop_assert_eq!(Name::parse(text.as_bytes()), labels.ok());
    }

    #[test]
    fn any_text_is_total(text in "\\PC{0,300}") {
        drop(text.parse::<Name>());
        drop(text.parse::<NetworkDomain>());
    }
}
