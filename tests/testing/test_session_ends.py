"""Sessions that rules make are ended, all of them, and what goes wrong there is reported."""

from __future__ import annotations

import pytest

from interpretune.testing import RULES, Bench
from interpretune.testing.doctor import FAILED, PASSED, check_suite
from tests.broken_adapters.checking import AcmeSuite, installed

BROKEN = "misbehaving.fails_after_predictions"


def test_every_session_is_ended_where_one_fails(tmp_path):
    with installed(BROKEN):
        bench = Bench(AcmeSuite(), tmp_path)
        sessions = [bench.new_session() for _ in range(3)]
        sessions[1].module.last_prediction = {}
        never_alive = bench.new_session(init=False)
        with pytest.raises(OSError, match="acme_file"):
            bench.end_sessions()
        alive = [session.module.initialised for session in (*sessions, never_alive)]
        assert not any(alive)
        bench.close()
    assert not tmp_path.exists()


def test_what_fails_at_the_end_is_a_verdict_and_without_its_rule_a_note(tmp_path, capsys):
    rules = [RULES["results-arrive"], RULES["sessions-end"]]
    with installed(BROKEN):
        assert [verdict.outcome for verdict in check_suite(AcmeSuite(), tmp_path / "a", rules)] == [PASSED, FAILED]
        assert "do not end" not in capsys.readouterr().err
        assert [verdict.outcome for verdict in check_suite(AcmeSuite(), tmp_path / "b", rules[:1])] == [PASSED]
    assert "the sessions of acme do not end: OSError: acme_file is closed already" in capsys.readouterr().err
