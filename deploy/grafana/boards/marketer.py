"""The marketer's dashboard: the funnel, the campaigns, and whether they work."""

from __future__ import annotations

from boards.panels import Panel, Row, by_stage, mean_reach, number, over_range, rate


def ratio_of_events(deep: str, shallow: str) -> str:
    """Return the query of one event type over another, over the shown time."""
    above, below = (over_range("funnelcast_events_answered_total", labels=f'type="{name}"') for name in (deep, shallow))
    return f"{above} / {below}"


HELD = over_range("funnelcast_triggers_suppressed_total", "campaign", labels='reason="holdout"')
SENT = over_range("funnelcast_triggers_emitted_total", "campaign")


def orders(group: str) -> str:
    """Return the query of a group's orders over the shown time."""
    return over_range("funnelcast_campaign_orders_total", "campaign", labels=f'group="{group}"')


MARKETER = [
    Row(
        "The funnel",
        [
            number(
                "Clicks",
                "Clicks answered over the shown time.",
                "short",
                over_range("funnelcast_events_answered_total"),
            ),
            number("Sessions ended", "Over the shown time.", "short", over_range("funnelcast_sessions_ended_total")),
            number(
                "Orders",
                "Over the shown time.",
                "short",
                over_range("funnelcast_events_answered_total", labels='type="order"'),
            ),
            number(
                "Carts per view",
                "Products put into carts over products viewed, over the shown time.",
                "percentunit",
                ratio_of_events("cart_add", "product_view"),
            ),
            number(
                "Orders per cart",
                "Orders over products put into carts, over the shown time.",
                "percentunit",
                ratio_of_events("order", "cart_add"),
            ),
            number("Triggers", "Sent over the shown time.", "short", over_range("funnelcast_triggers_emitted_total")),
            Panel(
                "Sessions by stage",
                "Sessions that ended, by the deepest stage that their user reached within the day.",
                "short",
                by_stage(lambda stage: over_range("funnelcast_sessions_ended_total", labels=stage)),
                "bars",
            ),
            Panel(
                "Events",
                "Per second, by type.",
                "reqps",
                [(rate("funnelcast_events_answered_total", "type"), "{{type}}")],
                "stack",
            ),
            Panel(
                "Chance to buy within a day",
                "Mean over all answers, anywhere and in the category of the event.",
                "percentunit",
                [
                    (mean_reach("user", 'stage="purchase"'), "anywhere"),
                    (
                        mean_reach("category", 'stage="purchase"'),
                        "in the category",
                    ),
                ],
            ),
        ],
    ),
    Row(
        "Campaigns",
        [
            Panel(
                "Triggers",
                "Sent per second, by campaign.",
                "ops",
                [(rate("funnelcast_triggers_emitted_total", "campaign"), "{{campaign}}")],
                "stack",
            ),
            Panel(
                "Withheld",
                "Per second, by reason: cooldown, hysteresis (the chance has hardly moved since), holdout and others.",
                "ops",
                [(rate("funnelcast_triggers_suppressed_total", "reason"), "{{reason}}")],
                "stack",
            ),
            Panel(
                "Sent and withheld",
                "Over the shown time, by campaign.",
                "short",
                [
                    (SENT, "{{campaign}} sent"),
                    (over_range("funnelcast_triggers_suppressed_total", "campaign"), "{{campaign}} withheld"),
                ],
                "bars",
            ),
        ],
    ),
    Row(
        "Do they work? Treatment against holdout",
        [
            Panel(
                "Users decided on",
                "Decisions over the shown time: triggers sent (treatment), and withheld to measure (holdout).",
                "short",
                [(SENT, "{{campaign}} treatment"), (HELD, "{{campaign}} holdout")],
                "bars",
            ),
            Panel(
                "Orders within a day",
                "Orders of users on whom the campaign decided within the day before, over the shown time.",
                "short",
                [(orders("treatment"), "{{campaign}} treatment"), (orders("holdout"), "{{campaign}} holdout")],
                "bars",
            ),
            Panel(
                "Orders per decision",
                "The campaign works where treatment is above holdout by more than chance; small groups prove nothing.",
                "percentunit",
                [
                    (f"{orders('treatment')} / {SENT}", "{{campaign}} treatment"),
                    (f"{orders('holdout')} / {HELD}", "{{campaign}} holdout"),
                ],
                "bars",
            ),
        ],
    ),
]
