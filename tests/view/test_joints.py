"""State and action: which dimensions are shown together, and under which side."""

from __future__ import annotations

import dataclasses

from numbered_source import JOINTS, numbered_source

from bimact.data.source import Column, Source
from bimact.view.content import joints_of


def source(state: Column, action: Column) -> Source:
    return dataclasses.replace(numbered_source(), columns={"state": state, "action": action})


def listed(state: Column, action: Column) -> list[tuple[str, str, int | None, int | None]]:
    return [dataclasses.astuple(joint) for joint in joints_of(source(state, action))]


def named(*names: str) -> Column:
    return Column(len(names), names)


def test_equal_names_are_paired_in_any_order() -> None:
    assert listed(named("a", "b", "c"), named("c", "a", "d")) == [
        ("a", "", 0, 1),
        ("b", "", 1, None),
        ("c", "", 2, 0),
        ("d", "", None, 2),
    ]


def test_a_name_that_occurs_twice_is_paired_twice() -> None:
    assert listed(named("a", "a"), named("a", "a")) == [("a", "", 0, 0), ("a", "", 1, 1)]


def test_equal_sizes_are_paired_by_number() -> None:
    assert listed(Column(2), Column(2)) == [("dimension 0", "", 0, 0), ("dimension 1", "", 1, 1)]
    assert listed(Column(2), named("x", "y")) == [("x", "", 0, 0), ("y", "", 1, 1)]
    assert listed(named("p", "q"), named("x", "y")) == [("p / x", "", 0, 0), ("q / y", "", 1, 1)]


def test_other_sizes_are_not_paired() -> None:
    assert listed(Column(2), Column(1)) == [
        ("state 0", "", 0, None),
        ("state 1", "", 1, None),
        ("action 0", "", None, 0),
    ]


def test_sides_are_found_in_the_names() -> None:
    for names in (JOINTS, ["kLeftElbow", "kRightElbow"], ["l_arm", "r_arm"], ["main_left.pos", "main_right.pos"]):
        groups = [joint.group for joint in joints_of(source(named(*names), Column(len(names))))]
        assert groups == ["left"] * (len(names) // 2) + ["right"] * (len(names) // 2), names


def test_without_both_sides_there_are_no_groups() -> None:
    for names in (["left_arm", "waist"], ["upright", "bleft"], ["rate", "lift"]):
        assert {joint.group for joint in joints_of(source(named(*names), Column(2)))} == {""}, names
    joints = joints_of(source(named("left_arm", "right_arm", "base"), Column(3)))
    assert [joint.group for joint in joints] == ["left", "right", ""]
