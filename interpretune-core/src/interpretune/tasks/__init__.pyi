from interpretune.tasks.finding import OfferedTask, find_task, offered_tasks
from interpretune.tasks.task import Part, Task

__all__ = ["OfferedTask", "Part", "Task", "find_task", "offered_tasks"]
